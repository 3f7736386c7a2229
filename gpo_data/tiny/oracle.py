"""Groups of an oracle: the renderer's own pictures, to import: `python -m gpo_data.tiny.oracle text-tiny --out DIR`.

    DIR/00042-007.png    member 7 of prompt 42 of the recipe's task, those that `gpo-data shards` would draw
    DIR/metadata.jsonl   file_name, prompt and target of each, as `gpo-data import` reads them
    DIR/prompts.jsonl    the prompts of all parts of the split, for `task.prompts`

A group of perfect pictures alone would be dead: no member is better than another. So the first `--right` of its members
are exactly what the prompt asks for, and the others are as well drawn and wrong by one: another letter in one place of
the word, or one thing more or less. 1 makes groups for `train.objective: sft`. With `--having Q` (or 6) the prompts are
those whose word has that letter, or that ask for that number. Prompts of the user's own (`task.prompts`) ask for what
the renderer draws, and have a column `color`.

What always holds: a picture is a function of the recipe's seed, its prompt and its member, and of nothing else.
Exit code 0: done; 1: the disk failed; 2: the recipe or the command line is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpo_data.errors import RunError, UsageError
from gpo_data.out_folder import expect_empty, make_folder
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe, load
from gpo_data.tasks import TASKS
from gpo_data.tasks.sources import on_side
from gpo_data.tiny import words
from gpo_data.tiny.render import render_count, render_text

PARTS = 15  # a part of the split is at least one in so many prompts
LEAST = 20  # prompts of a part, about
MOST = 200_000  # words looked through for a letter
HAVING = {"text": ("[A-Z]", "a letter A-Z"), "count": ("[1-6]", "a number 1-6")}


def render(recipe: Recipe, out: Path, right: float = 0.5, having: str | None = None) -> int:
    """Write the folder; how many pictures. Raises UsageError, RunError."""
    task = recipe.task
    if task.kind not in HAVING or task.grammar != "signs":
        raise UsageError(
            f"recipe {recipe.name}: expected task.kind text or count with task.grammar signs, which is what the "
            f"renderer draws, found {task.kind} with {task.grammar}"
        )
    pattern, wanted = HAVING[task.kind]
    if having is not None and not re.fullmatch(pattern, having):
        raise UsageError(f"--having: expected {wanted}, which prompts of task.kind {task.kind} have, found {having!r}")
    rights = _rights(right, recipe.group_size)
    expect_empty(out)
    kind, everywhere = TASKS[task.kind], _prompts(recipe, having)
    if having is None:
        chosen = kind.prompts(task, recipe.seed)
    else:
        chosen = [one for one in everywhere if on_side(kind.key(one), task)]
    if not chosen:
        raise UsageError(f"--having {having}: expected prompts that have it, found none in task.split {task.split}")
    if task.num_prompts is not None and len(chosen) < task.num_prompts:
        raise UsageError(
            f"task.num_prompts: expected at most {len(chosen)}, which is how many have {having}, found "
            f"{task.num_prompts}"
        )
    chosen = chosen[: task.num_prompts]
    for prompt in chosen:
        _expect_drawable(prompt)
    make_folder(out)
    rows = []
    for index, prompt in enumerate(chosen):
        for member in range(recipe.group_size):
            rng = np.random.default_rng([recipe.seed, index, member])
            name = f"{index:05d}-{member:03d}.png"
            picture = _picture(prompt, member < rights, rng)
            Image.fromarray(picture).save(out / name)
            rows.append({"file_name": name} | _row(recipe, prompt))
    for name, lines in (("prompts", [_row(recipe, one) for one in everywhere]), ("metadata", rows)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return len(rows)


def _rights(share: float, size: int) -> int:
    """Of a group's members. Raises UsageError."""
    if not 0 < share <= 1:
        raise UsageError(f"--right: expected a share above 0, at most 1, found {share:g}")
    rights = round(share * size)
    if share < 1 and not 0 < rights < size:
        raise UsageError(
            f"--right: expected a right and a wrong member in every group, found {rights} right ones of {size} for "
            f"{share:g}; give {1 / size:g} to {1 - 1 / size:g}, or 1, or raise group_size"
        )
    return rights


def _expect_drawable(prompt: Prompt) -> None:
    """Raises UsageError for what the renderer does not draw; a prompt of the user's own may be anything."""
    target: dict[str, Any] = dict(prompt.target)
    try:
        if "color" not in target:
            raise ValueError(f"expected a column color with one of {', '.join(words.COLORS)}, found none")
        if "target" in target:
            words.text_caption(target["color"], target["target"])
        else:
            words.count_caption(target["target_count"], target["color"], target["target_class"])
    except ValueError as error:
        raise UsageError(f"task.prompts: {prompt.text:.200}: {error}") from None


def _prompts(recipe: Recipe, having: str | None) -> list[Prompt]:
    """Of all parts of the split; as many as leave each part enough."""
    kind, count = TASKS[recipe.task.kind], PARTS * max(LEAST, recipe.task.num_prompts or 0)
    if recipe.task.kind == "count" or recipe.task.prompts is not None:
        task = dataclasses.replace(recipe.task, split="all", num_prompts=None)
        return [one for one in kind.prompts(task, recipe.seed) if _has(one, having)]
    size = count
    while True:
        task = dataclasses.replace(recipe.task, split="all", num_prompts=size)
        found = [one for one in kind.prompts(task, recipe.seed) if _has(one, having)]
        if len(found) >= count or size >= MOST:
            return found[:count]
        size = min(MOST, 2 * size)


def _has(prompt: Prompt, having: str | None) -> bool:
    target = prompt.target
    return having is None or having == str(target.get("target_count")) or having in str(target.get("target", ""))


def _row(recipe: Recipe, prompt: Prompt) -> dict[str, Any]:
    names = {"target_count": recipe.task.target_column, "target": recipe.task.target_column}
    names |= {"target_class": recipe.task.class_column}
    return {recipe.task.prompt_column: prompt.text} | {names.get(k, k): v for k, v in prompt.target.items()}


def _picture(prompt: Prompt, right: bool, rng: np.random.Generator) -> np.ndarray:
    """uint8 [64, 64, 3]; wrong by one letter, or by one thing."""
    target: dict[str, Any] = dict(prompt.target)
    if "target" in target:
        word = target["target"]
        if not right:
            place = int(rng.integers(len(word)))
            other = words.LETTERS.replace(word[place], "")[int(rng.integers(len(words.LETTERS) - 1))]
            word = word[:place] + other + word[place + 1 :]
        return render_text(word, color=target["color"], rng=rng)
    number = target["target_count"]
    if not right:
        near = [one for one in (number - 1, number + 1) if 1 <= one <= len(words.NUMBERS)]
        number = near[int(rng.integers(len(near)))]
    return render_count(target["target_class"], number, target["color"], rng)[0]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gpo_data.tiny.oracle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any key of the recipe can be overridden: --group_size 16 --task.num_prompts 128.",
    )
    parser.add_argument("recipe", help="a name or a file")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--right", type=float, default=0.5, metavar="SHARE", help="of members; default: 0.5")
    parser.add_argument("--having", metavar="LETTER|NUMBER", help="a letter A-Z, or a number 1-6")
    arguments, overrides = parser.parse_known_args(argv)
    try:
        written = render(load(arguments.recipe, overrides), arguments.out, arguments.right, arguments.having)
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    name = arguments.out.name
    print(
        f"rendered {written} pictures; `gpo-data import {arguments.recipe} {arguments.out} --name {name}` imports them"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which prompts an evaluation draws: the first of a part of the split (`eval.split`) whose targets are new to the run.

    train | validation | heldout          by the hash of the content key (split.py)
    validation, heldout - trained on      a run with `task.split: all` was trained on some of them
    eval.prompts: a file                  all of it, and how many of its targets were trained on

Where something has to be left out, what is left is written to a file and drawn from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from gpo_data.errors import UsageError
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe, Task
from gpo_data.tasks import TASKS
from gpo_train.evaluation.result import Prompts
from gpo_train.evaluation.tags import tags_of
from gpo_train.online.iterations import from_file, write_prompts


@dataclass(frozen=True)
class EvalPrompts:
    """Args:
    task: what draws them, `num_prompts` of them.
    keys: the content key of each; pictures of one key are not independent.
    part: of the split, or `file`.
    tags: by column and value the prompts' indices (tags.py).
    trained_on: prompts of a file whose target was trained on; they stay.
    left_out: prompts in the place of which others were taken, because their targets were trained on.
    """

    task: Task
    keys: list[str]
    left_out: int
    part: str
    tags: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    trained_on: int = 0

    def described(self) -> Prompts:
        return Prompts(
            split=self.part,
            prompts=len(self.keys),
            targets=len(set(self.keys)),
            left_out=self.left_out,
            file=self.task.prompts if self.part == FILE else None,
            trained_on=self.trained_on,
            task=self.task.kind,
        )


FILE = "file"  # in the place of a part of the split


def choose(recipe: Recipe, trained: set[str], folder: Path) -> EvalPrompts:
    """At most `eval.prompts` of the part `eval.split`. Raises UsageError where none is left.

    Args:
        trained: content keys to leave out.
        folder: where the file is written that has what is left.
    """
    kind, settings = TASKS[recipe.task.kind], recipe.eval
    if isinstance(settings.prompts, str):
        return _whole(recipe, settings.prompts, trained)
    kept: list[Prompt] = []
    left_out = 0
    for prompt in _available(recipe, settings.prompts + len(trained)):
        if len(kept) == settings.prompts:
            break
        if kind.key(prompt) in trained:
            left_out += 1
        else:
            kept.append(prompt)
    if not kept:
        raise UsageError(
            f"eval.split: expected prompts of the part {settings.split} with targets that were not trained on, found "
            f"{left_out} prompts, and every one was; train with task.split: train, or bring more prompts (task.prompts)"
        )
    task = dataclasses.replace(recipe.task, split=settings.split, num_prompts=len(kept))
    if left_out:
        texts = "\n".join(prompt.text for prompt in kept)
        path = folder / f"eval-prompts-{hashlib.blake2b(texts.encode(), digest_size=4).hexdigest()}.jsonl"
        write_prompts(kept, path)
        task = from_file(recipe.task, path)
    return EvalPrompts(
        task, [kind.key(prompt) for prompt in kept], left_out, settings.split, tags_of(kept, list(kind.columns))
    )


def _whole(recipe: Recipe, path: str, trained: set[str]) -> EvalPrompts:
    """Every prompt of a file: a benchmark is not a benchmark without some of them. Raises UsageError."""
    kind = TASKS[recipe.task.kind]
    task = dataclasses.replace(recipe.task, prompts=path, split="all", num_prompts=None)
    try:
        found = kind.prompts(task, recipe.eval.seed)
    except UsageError as error:
        raise UsageError(f"eval.prompts: {str(error).removeprefix('task.prompts: ')}") from None
    keys = [kind.key(prompt) for prompt in found]
    known = sum(key in trained for key in keys)
    return EvalPrompts(task, keys, 0, FILE, tags_of(found, list(kind.columns)), known)


def _available(recipe: Recipe, enough: int) -> list[Prompt]:
    """All prompts of the part; of a grammar that has no end the first `enough`. Raises UsageError."""
    task = dataclasses.replace(recipe.task, split=recipe.eval.split, num_prompts=None)
    prompts = TASKS[task.kind].prompts
    try:
        return prompts(task, recipe.eval.seed)
    except UsageError:  # null is refused where there are millions; another reason is raised again
        return prompts(dataclasses.replace(task, num_prompts=enough), recipe.eval.seed)

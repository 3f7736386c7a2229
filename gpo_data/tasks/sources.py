"""Where prompts come from when the user brings them, and the choices that all sources share.

    .txt      one prompt a line; the task finds the target in the sentence; blank lines are skipped
    .jsonl    one object a line, with `task.prompt_column`, `task.target_column` (and `task.class_column`)
    else      a local folder (written by `save_to_disk`, or one that `load_dataset` understands) or a `datasets` id

What always holds: every prompt has the target its task wants, and a line without it is an error with file and line
number; a prompt that occurs twice is an error with both line numbers, because a group of the same prompt and seeds
would be the same pictures twice; the order is the source's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpo_data.errors import UsageError
from gpo_data.prompt import Prompt, prompt_id
from gpo_data.recipe import Task
from gpo_data.split import part_of

Target = dict[str, str | int]


def own_prompts(
    spec: Task,
    from_sentence: Callable[[str], Target],
    from_row: Callable[[dict[str, Any]], Target],
    key: Callable[[Target], str] | None = None,
) -> list[Prompt]:
    """The prompts of `spec.prompts` in the wanted part of the split, in the source's order.

    Args:
        from_sentence: target out of a line of a .txt file; ValueError says what is missing.
        from_row: target out of a row with named columns; ValueError likewise.
        key: the content key that the split hashes; without one it is the sentence.
    """
    assert spec.prompts is not None
    is_text = Path(spec.prompts).suffix == ".txt"
    seen: dict[str, str] = {}
    found = []
    for where, row in _rows(spec):
        try:
            sentence = _sentence(row, spec)
            target = from_sentence(sentence) if is_text else from_row(row)
        except ValueError as error:
            raise UsageError(f"task.prompts: {where}: {error}") from None
        if sentence in seen:
            raise UsageError(f"task.prompts: {where}: the same prompt as {seen[sentence]}; delete one: {sentence}")
        seen[sentence] = where
        found.append((Prompt(prompt_id(sentence), sentence, target), key(target) if key else folded(sentence)))
    if not found:
        raise UsageError(f"task.prompts: {spec.prompts}: no prompts in it; expected one a line")
    return [prompt for prompt, content in found if on_side(content, spec)]


def listed(text: str) -> tuple[str, ...]:
    """The entries of a list with commas between them."""
    return tuple(" ".join(entry.split()) for entry in text.split(","))


def folded(sentence: str) -> str:
    """The content key of a prompt that has no target."""
    return " ".join(sentence.lower().split())


def on_side(key: str, spec: Task) -> bool:
    """Whether the content key lies in the part of the split that the recipe wants."""
    return spec.split == "all" or part_of(key) == spec.split


def take(prompts: list[Prompt], spec: Task) -> list[Prompt]:
    """The first `task.num_prompts`; all of them if that is null; UsageError if there are fewer, or none."""
    side = "" if spec.split == "all" else f" in the part {spec.split} of the split (task.split)"
    if not prompts:
        raise UsageError(f"task.prompts: no prompts{side}; set task.split to all, or bring more prompts")
    if spec.num_prompts is not None and spec.num_prompts > len(prompts):
        raise UsageError(
            f"task.num_prompts: expected at most {len(prompts)}, which is how many prompts there are{side}, "
            f"found {spec.num_prompts}; lower it, or null takes them all"
        )
    return prompts[: spec.num_prompts]


def column(row: dict[str, Any], name: str, key: str) -> Any:
    """`row[name]`; ValueError names the columns there are and the recipe key that chooses another."""
    if row.get(name) is None:
        raise ValueError(f"no {name!r} (the columns are {', '.join(row) or 'none'}; {key} names another)")
    return row[name]


def _sentence(row: dict[str, Any], spec: Task) -> str:
    sentence = column(row, spec.prompt_column, "task.prompt_column")
    if not isinstance(sentence, str) or not sentence.strip():
        raise ValueError(f"{spec.prompt_column}: expected a sentence, found {sentence!r}")
    return sentence.strip()


def _rows(spec: Task) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of the source; `where` is `file:line` or `id, row n`."""
    assert spec.prompts is not None
    path = Path(spec.prompts)
    if path.suffix in (".txt", ".jsonl"):
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                where = f"{path}:{number}"
                yield where, {spec.prompt_column: line} if path.suffix == ".txt" else _object(line, where)
        return
    if path.is_file():
        raise UsageError(f"task.prompts: {path}: expected a .txt or .jsonl file, a folder or a `datasets` id")
    for number, row in enumerate(_dataset(spec, path), start=1):
        yield f"{spec.prompts}, row {number}", row


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UsageError(f"task.prompts: {path}: no such file; paths are relative to the current folder")
    try:
        # split on line ends only: splitlines() would also cut at a form feed or U+2028 inside a prompt
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"task.prompts: {path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"task.prompts: {where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UsageError(f"task.prompts: {where}: expected an object with named columns, found {row!r}")
    return row


def _dataset(spec: Task, path: Path) -> Any:
    """The rows of a `datasets` folder or id; imported here because it is slow and may touch the network."""
    import datasets

    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
            if not isinstance(loaded, datasets.DatasetDict):
                return loaded
            if spec.dataset_split not in loaded:
                raise UsageError(f"task.dataset_split: {path} has {', '.join(loaded)}, not {spec.dataset_split!r}")
            return loaded[spec.dataset_split]
        return datasets.load_dataset(spec.prompts, split=spec.dataset_split)
    except UsageError:
        raise
    except Exception as error:  # whatever the loader raises, the user needs the same thing: a source that opens
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UsageError(
            f"task.prompts: {spec.prompts}: neither a local .txt, .jsonl or folder, nor a data set that opens here "
            f"(split {spec.dataset_split!r}): {reason}. Without a network, save it where there is one with "
            f"`datasets.load_dataset(id, split=...).save_to_disk(folder)` and set task.prompts to the folder"
        ) from None

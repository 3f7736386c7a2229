"""What imported pictures were asked for: a prompt of each caption, with the target that the task finds.

    row        that has the target's column (task.target_column; `include` of task compose): as a row of task.prompts
    caption    of any other: as a sentence of task.prompts; task align takes every caption

What always holds: each row decides for itself. Pictures of one caption are one prompt: its target is what their rows
say, and none of them says another; of the other columns travel those in which all of them agree.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpo_data.errors import UsageError
from gpo_data.exchange.rows import Picture
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe, Task
from gpo_data.tasks import TASKS
from gpo_data.tasks.files import column_of

Rows = dict[str, dict[str, Any]]  # {caption: its columns}


def prompts_of(recipe: Recipe, source: str, pictures: Sequence[Picture]) -> dict[str, Prompt]:
    """{caption: its prompt}. Raises UsageError."""
    own = _target_columns(recipe.task)
    same: dict[str, list[Picture]] = {}
    for one in pictures:
        same.setdefault(one.caption, []).append(one)
    rows = {caption: _row(source, of, own) for caption, of in same.items()}
    _make_one_type(rows, own)
    first = {caption: of[0] for caption, of in same.items()}
    named = {caption: row for caption, row in rows.items() if not own or column_of(row, own[0])}
    found = _read(recipe, source, named, first)
    unnamed = {caption: rows[caption] for caption in rows if caption not in named}
    taken = {column for row in unnamed.values() for name in own if (column := column_of(row, name))}
    sentences = {caption: {n: row[n] for n in row if n not in taken} for caption, row in unnamed.items()}
    found |= _read(recipe, source, sentences, first)
    if missing := [caption for caption in rows if caption not in found]:
        raise UsageError(f"import {source}: no prompt of task.kind {recipe.task.kind} came of {missing[0]!r}")
    if recipe.task.kind == "count":
        for caption, row in unnamed.items():
            _expect_class(recipe.task, row, found[caption], f"{source}, {first[caption].where}")
    return found


def _target_columns(task: Task) -> list[str]:
    """Of a row, as the task reads them: one that lacks the first has its target in the caption."""
    if task.kind == "align":
        return []
    if task.kind == "compose":
        return ["include", "exclude"]
    return [task.target_column, *([task.class_column] if task.kind == "count" else [])]


def _row(source: str, pictures: list[Picture], own: list[str]) -> dict[str, Any]:
    """What the rows of one caption's pictures say. Raises UsageError."""
    lowered = {name.lower() for name in own}
    row: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in pictures for name in one.columns):
        having = [one for one in pictures if name in one.columns]
        value = having[0].columns[name]
        other = next((one for one in having if one.columns[name] != value), None)
        if other is None and (len(having) == len(pictures) or name.lower() in lowered):
            row[name] = value
        elif other is not None and name.lower() in lowered:
            raise UsageError(
                f"import {source}: expected one {name} of the caption {other.caption!r:.100}, found {value!r:.100} of "
                f"{having[0].where} and {other.columns[name]!r:.100} of {other.where}; give them captions of their own"
            )
    return row


def _make_one_type(rows: Rows, own: list[str]) -> None:
    """A column that travels holds one type, also where some of its captions are read as rows and others are not."""
    for name in dict.fromkeys(name for row in rows.values() for name in row if name not in own):
        having = [row for row in rows.values() if name in row]
        kinds = {type(row[name]) for row in having}
        for row in having if len(kinds) > 1 else []:
            if kinds == {int, float}:
                row[name] = float(row[name])
            elif not isinstance(row[name], str):
                row[name] = json.dumps(row[name])


def _read(recipe: Recipe, source: str, rows: Rows, first: dict[str, Picture]) -> dict[str, Prompt]:
    """{caption: its prompt}, as the task reads the rows of a file. Raises UsageError."""
    if not rows:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.jsonl"
        lines = [json.dumps(row | {recipe.task.prompt_column: caption}) for caption, row in rows.items()]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        task = dataclasses.replace(recipe.task, prompts=str(path), num_prompts=None, split="all")
        try:
            return {one.text: one for one in TASKS[task.kind].prompts(task, recipe.seed)}
        except UsageError as error:
            where = [first[caption].where for caption in rows]
            said = str(error).removeprefix("task.prompts: ")
            said = re.sub(f"{re.escape(str(path))}:(\\d+)", lambda found: f"{source}, {where[int(found[1]) - 1]}", said)
            said = said.replace(str(path), source)
            raise UsageError(f"import: {said}; task.kind: align takes any caption") from None


def _expect_class(task: Task, row: dict[str, Any], prompt: Prompt, where: str) -> None:
    """A caption that was counted says what the row's class says, if it has one. Raises UsageError."""
    column, counted = column_of(row, task.class_column), str(prompt.target["target_class"])
    if column is not None and str(row[column]).strip().lower() != counted.lower():
        raise UsageError(
            f"import {where}: no {task.target_column!r}, and {column} says {str(row[column])!r:.100} where the caption "
            f"says {counted!r}; give the number, or set task.class_column to another column"
        )

"""What a task owns: its columns, its prompts, what is right, how hard a prompt is, and how a member is described.

    exact     SQL over a member's columns: right or wrong; a column of the view `members`
    lenient   SQL: nearly right, for the evaluation's second column
    level     SQL over the target: how hard the prompt is, a whole number; a column of `members` as well
    key       of a prompt: what the split hashes (split.py), the same for every wording of one target

A new task is one file that makes a `TaskKind`, and one line in tasks/__init__.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from gpo_data.prompt import Prompt
from gpo_data.recipe import Task
from gpo_data.tasks.sources import folded


@dataclass(frozen=True)
class TaskKind:
    """Args:
    columns: target columns, {name: Arrow type}.
    prompts: (recipe.Task, seed) -> prompts, distinct and in a fixed order; the first n do not depend on how many are
        asked for, so that a dataset can grow. Raises UsageError.
    exact: SQL; members whose columns are not there have NULL.
    lenient: SQL, likewise.
    scores: {name: SQL}: what else the field reports of the task, each 0 to 1.
    level: SQL.
    level_name: what the level counts.
    key: the content key; the sentence itself for a task whose prompts have no target.
    measured: measurement columns that `exact` reads.
    describe: what was seen of a member, out of its columns, in a few words for the line under a picture.
    classes: of a prompt: the things that a detector has to know.
    file_columns: {target column: its column in a file of prompts} where the names differ.
    """

    columns: dict[str, pa.DataType]
    prompts: Callable[[Task, int], list[Prompt]]
    exact: str
    lenient: str
    level: str
    level_name: str
    key: Callable[[Prompt], str] = lambda prompt: folded(prompt.text)
    measured: tuple[str, ...] = ()
    scores: dict[str, str] = field(default_factory=dict)
    describe: Callable[[Mapping[str, Any]], str] = lambda row: ""
    classes: Callable[[Prompt], set[str]] = lambda prompt: set()
    file_columns: dict[str, str] = field(default_factory=dict)

    def reads(self) -> set[str]:
        """Columns without which `exact` and `level` cannot be computed."""
        words = set(re.findall(r"\w+", f"{self.exact} {self.level}"))
        return {*self.measured, *(words & self.columns.keys())}

"""Prompts that the user brings, and the choices that all sources share.

    sentence    of a .txt file, or of a source that has no column for the target: the task finds the target in it
    row         of any other source (files.py): `task.prompt_column`, `task.target_column` (and `task.class_column`)

Every other column of a row travels with its prompt as a target column of the dataset (extras.py).

What always holds: every prompt has the target its task wants; all problems of a source are one message, the first ten
with file and line and how many there are; a prompt that occurs twice is one of them, because a group of the same prompt
and seeds would be the same pictures twice, unless `task.duplicates` says what to do; the order is the source's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from gpo_data.errors import UsageError
from gpo_data.prompt import Prompt, Value, prompt_id
from gpo_data.recipe import Task
from gpo_data.split import part_of
from gpo_data.tasks import extras, files
from gpo_data.tasks.files import Row

Target = dict[str, Value]
SHOWN = 10  # problems of a source


@dataclass(frozen=True)
class Source:
    """Args:
    rows: those that can be read, each prompt once.
    problems: `where: what` of the others.
    repeated: how many rows repeat another's prompt and were dropped or merged.
    """

    rows: list[Row]
    problems: list[str]
    repeated: int


def own_prompts(
    spec: Task,
    from_sentence: Callable[[str], Target],
    from_row: Callable[[dict[str, Any]], Target],
    key: Callable[[Target], str] | None = None,
    named: Collection[str] = (),
    taken: Collection[str] = (),
    text: Collection[str] = (),
) -> list[Prompt]:
    """The prompts of `spec.prompts` in the wanted part of the split, in the source's order. Raises UsageError.

    Args:
        from_sentence: target out of a sentence; ValueError says what is missing.
        from_row: target out of a row with named columns; ValueError likewise.
        key: the content key that the split hashes; without one it is the sentence.
        named: columns that hold the target; where no row has any of them, the sentence has it.
        taken: columns that `from_row` reads, besides, and that do not travel by themselves.
        text: columns that stay text in a .csv file, whatever they hold.
    """
    source = read(spec, text)
    reads = {*named, *taken}
    in_sentence = files.is_text(spec) or (
        bool(named) and not any(files.column_of(row.values, name) for row in source.rows for name in named)
    )
    problems, kept = list(source.problems), list[tuple[Row, str, Target]]()
    for row in source.rows:
        try:
            sentence = sentence_of(row.values, spec)
            kept.append((row, sentence, from_sentence(sentence) if in_sentence else from_row(row.values)))
        except ValueError as error:
            problems.append(f"{row.where}: {error}")
    more, columns = extras.of(
        [(row.where, row.values, target) for row, _, target in kept], {spec.prompt_column, *reads}
    )
    problems += more
    if problems:
        raise _refused(spec, problems)
    if not kept:
        raise UsageError(f"task.prompts: {spec.prompts}: no prompts in it; expected one a line")
    return [
        Prompt(prompt_id(sentence), sentence, target | other)
        for (_, sentence, target), other in zip(kept, columns, strict=True)
        if on_side(key(target) if key else folded(sentence), spec)
    ]


def read(spec: Task, text: Collection[str] = ()) -> Source:
    """The rows of `task.prompts`, with prompts that occur twice as `task.duplicates` says. Raises UsageError."""
    problems, repeated = list[str](), 0
    first: dict[str, list[Row]] = {}
    for row in files.rows(spec, text):
        try:
            if row.problem is not None:
                raise ValueError(row.problem)
            sentence = sentence_of(row.values, spec)
        except ValueError as error:
            problems.append(f"{row.where}: {error}")
            continue
        if sentence not in first:
            first[sentence] = [row]
            continue
        repeated += 1
        if spec.duplicates == "merge":
            first[sentence].append(row)
        elif spec.duplicates == "error":
            where = first[sentence][0].where
            problems.append(
                f"{row.where}: the same prompt as {where}; delete one, or set task.duplicates to drop: {sentence:.200}"
            )
    return Source([_merged(rows) for rows in first.values()], problems, repeated)


def _merged(rows: list[Row]) -> Row:
    """One row: a column that differs is the list of its values, in the order of the rows."""
    if len(rows) == 1:
        return rows[0]
    names = dict.fromkeys(name for row in rows for name in row.values)
    columns = {name: [row.values.get(name) for row in rows] for name in names}
    same = {name: all(value == values[0] for value in values) for name, values in columns.items()}
    return replace(rows[0], values={n: values[0] if same[n] else values for n, values in columns.items()})


def _refused(spec: Task, problems: list[str]) -> UsageError:
    if len(problems) == 1:
        return UsageError(f"task.prompts: {problems[0]}")
    first = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
    more = f"; the first {SHOWN}" if len(problems) > SHOWN else ""
    return UsageError(f"task.prompts: {spec.prompts}: {len(problems):,} problems{more}:{first}")


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
    """`row[name]`; ValueError where it is empty, or names the columns there are and the key that chooses another."""
    found = files.column_of(row, name)
    if found is None:
        raise ValueError(f"no {name!r} (the columns are {', '.join(row) or 'none'}; {key} names another)")
    value = row[found]
    if value is None or value in ([], {}) or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{name} is empty")
    return value


def sentence_of(row: dict[str, Any], spec: Task) -> str:
    """The prompt. Raises ValueError."""
    sentence = column(row, spec.prompt_column, "task.prompt_column")
    if not isinstance(sentence, str):
        raise ValueError(f"{spec.prompt_column}: expected a sentence, found {sentence!r:.200}")
    return extras.encodable(sentence.strip(), spec.prompt_column)

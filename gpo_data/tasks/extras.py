"""The columns of a user's row that the task does not read: they travel with the prompt as target columns.

    Category        -> category         names are made those of SQL: lower case, `_` for what is no letter or digit
    seed, status    -> row_seed, ...    names that every dataset has, or a task's column of another type
    [..], {..}      -> text             lists and objects as JSON, which SQL takes apart (`include->0->>'class'`)

A column holds one type: truth, whole number, number or text; where a source mixes them, all are text. Values that are
missing (null, NaN, an empty field) are not there, NULL in SQL.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from gpo_data.lake.sidecar import RESERVED
from gpo_data.prompt import Prompt, Value

TYPES: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def of(
    rows: Sequence[tuple[str, dict[str, Any], dict[str, Value]]], read: Collection[str]
) -> tuple[list[str], list[dict[str, Value]]]:
    """(problems, the columns that travel of each row).

    Args:
        rows: where, values and target of each.
        read: columns that the task reads, in any case.
    """
    from gpo_data.tasks import TARGETS  # of all tasks, which import this

    own = {name.lower() for name in read}
    targets = {name for _, _, target in rows for name in target}
    names = {name: _sql_name(name, targets) for name in dict.fromkeys(name for _, values, _ in rows for name in values)}
    names = {name: new for name, new in names.items() if name.lower() not in own and name not in targets}
    problems, found = list[str](), list[dict[str, Value]]()
    for where, values, _ in rows:
        one: dict[str, Value] = {}
        for name, new in names.items():
            try:
                if (value := _plain(values.get(name), name)) is not None:
                    one.setdefault(new, value)
            except ValueError as error:
                problems.append(f"{where}: {error}")
        found.append(one)
    for new in dict.fromkeys(names.values()):
        same = [name for name, other in names.items() if other == new]
        if len(same) > 1 and any(len({str(values.get(name)) for name in same}) > 1 for _, values, _ in rows):
            problems.append(f"columns {', '.join(same)} would all be {new}; rename or remove all but one")
        having = [one for one in found if new in one]
        kind = _one_type(having, new)
        if new in TARGETS and TYPES[kind] != TARGETS[new] and (kind in (str, bool) or TARGETS[new] == pa.string()):
            if f"row_{new}" in names.values():
                problems.append(f"columns {new}, row_{new} would both be row_{new}; rename or remove one")
            for one in having:  # else the column would be of two types in the lake
                one[f"row_{new}"] = one.pop(new)
    return problems, found


def encodable(text: str, name: str) -> str:
    """The text. Raises ValueError where it holds what UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: character {error.start + 1} is half of a surrogate pair ({text[error.start]!r}), which cannot be "
            f"encoded; write the whole character"
        ) from None
    return text


def types_of(prompts: Sequence[Prompt], columns: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    """The target columns of these prompts: the task's, and those that travel with them, sorted by name."""
    kinds: dict[str, set[type]] = {}
    for prompt in prompts:
        for name, value in prompt.target.items():
            if name not in columns:
                kinds.setdefault(name, set()).add(type(value))
    return columns | {name: TYPES[_wider(kinds[name])] for name in sorted(kinds)}


def _sql_name(name: str, targets: Collection[str]) -> str:
    new = re.sub(r"\W+", "_", name).strip("_").lower() or "column"
    return f"row_{new}" if new in RESERVED or new in targets else new


def _plain(value: Any, name: str) -> Value | None:
    """Raises ValueError for what cannot be stored."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or value == "" or isinstance(value, bool):
        return None if value == "" else value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return encodable(str(value), name)


def _wider(kinds: set[type]) -> type:
    """The type that holds values of all of these."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return float if kinds == {int, float} else str


def _one_type(rows: list[dict[str, Value]], name: str) -> type:
    """Makes the column's values of one type, and returns it."""
    kind = _wider({type(row[name]) for row in rows} or {str})
    for row in rows:
        if type(value := row[name]) is not kind:
            row[name] = json.dumps(value) if kind is str else kind(value)
    return kind

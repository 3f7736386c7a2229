"""Rows of pictures with their captions, whatever they came in: a row is a picture, or one of Pick-a-Pic's pairs.

    caption    task.prompt_column, else caption, text or prompt
    picture    a column of bytes, or of the {bytes, path} of `datasets`
    pair       jpg_0, jpg_1 and label_0: labels 1 and 0, or 0.5 each

Other columns of a row travel with it, as those of task.prompts do: the task takes its target from them.
What always holds: pictures are opened one by one when they are needed; what cannot be encoded never gets this far.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from gpo_data.errors import UsageError, few
from gpo_data.evaluators.protocol import Malformed
from gpo_data.recipe import Task
from gpo_data.tasks import extras

CAPTIONS = ("caption", "text", "prompt")
IMAGES = ("image", "jpg", "png", "webp", "jpeg")
PAIR = ("jpg_0", "jpg_1", "label_0")
NUMBERS = (bool, int, float)
TEXTS = (str, date, time, Decimal)


@dataclass(frozen=True)
class Picture:
    """Args:
    where: its name, for people.
    caption: one line.
    read: its bytes. Raises Malformed, OSError.
    label: of a pair.
    pair: the pair's own name; None: a picture goes with all others of its caption.
    columns: what else its row says.
    """

    where: str
    caption: str
    read: Callable[[], bytes]
    label: float | None = None
    pair: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.where.encode()
        except UnicodeEncodeError:
            raise UsageError(f"import: expected file names in UTF-8, found {self.where!r}; rename it") from None


def of_row(
    where: str, row: dict[str, Any], binary: list[str], read: Callable[[str], Any], task: Task
) -> Iterator[Picture]:
    """A pair, or a picture. Raises UsageError.

    Args:
        row: its columns, but for those with bytes.
        binary: the columns with bytes.
        read: a column's bytes.
    """
    name, caption = caption_needed(row, task, where)
    columns = others(row, name)
    if {*PAIR[:2]} <= {*binary} and row.get("label_0") is not None:
        try:
            first = float(row["label_0"])
            second = 1 - first if row.get("label_1") is None else float(row["label_1"])
        except (TypeError, ValueError):
            raise UsageError(f"import {where}: label_0: expected a number, found {row['label_0']!r}") from None
        for i, label in enumerate((first, second)):
            data = functools.partial(_image_bytes, functools.partial(read, PAIR[i]), f"{where} {PAIR[i]}")
            yield Picture(f"{where}/{i}", caption, data, label, pair=where, columns=columns)
        return
    image = next((one for one in binary if one not in PAIR), None)
    if image is None:
        raise UsageError(
            f"import {where}: expected a column with pictures as bytes ({', '.join(IMAGES)}) or Pick-a-Pic's "
            f"{', '.join(PAIR)}, found {few([*row, *binary])}"
        )
    yield Picture(
        where, caption, functools.partial(_image_bytes, functools.partial(read, image), where), columns=columns
    )


def _image_bytes(read: Callable[[], Any], where: str) -> bytes:
    """Raises Malformed: one without a picture is a member that failed, and the others are imported."""
    found = read()
    data = found.get("bytes") if isinstance(found, dict) else found
    if data is None and isinstance(found, dict) and found.get("path"):
        data = Path(found["path"]).read_bytes()
    if not isinstance(data, bytes):
        raise Malformed(f"{where}: expected a picture's bytes, found {'none' if data is None else type(data).__name__}")
    return data


def caption_of(row: dict[str, Any], task: Task) -> tuple[str, str] | None:
    """(column, the caption in one line) of a row."""
    for name in dict.fromkeys((task.prompt_column, *CAPTIONS)):
        if isinstance(value := row.get(name), str) and value.strip():
            return name, " ".join(value.split())
    return None


def caption_needed(row: dict[str, Any], task: Task, where: str) -> tuple[str, str]:
    """Raises UsageError."""
    if (found := caption_of(row, task)) is None:
        raise UsageError(
            f"import {where}: no caption (task.prompt_column, {', '.join(CAPTIONS)}); its columns are {few(list(row))}"
        )
    return found


def others(row: dict[str, Any], *taken: str) -> dict[str, Any]:
    """What else a row says, as JSON holds it; without bytes and what is missing (null, NaN, an empty field)."""
    found = {name: _plain(value) for name, value in row.items() if name not in taken and _is_plain(value)}
    return {name: value for name, value in found.items() if not _is_missing(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | dict):
        return all(_is_plain(one) for one in (value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (*NUMBERS, *TEXTS))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    return value if value is None or isinstance(value, (*NUMBERS, str)) else str(value)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))


def encodable(row: dict[str, Any], where: str) -> dict[str, Any]:
    """The row. Raises UsageError where a text of it holds what UTF-8 cannot."""
    try:
        for name, value in row.items():
            extras.encodable(name, f"the column {name!r}")
            if isinstance(value, str):
                extras.encodable(value, name)
    except ValueError as error:
        raise UsageError(f"import {where}: {error}") from None
    return row


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold pictures: bytes, the {bytes, path} of `datasets`, or nothing at all."""
    return any(
        test(kind)
        for test in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
            pa.types.is_struct,
            pa.types.is_null,
        )
    )

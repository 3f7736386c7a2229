"""What a field of a recipe may hold: its type says it, and every section checks itself when it is made.

    batch_size: Count = 16        a whole number, 1 or more
    guidance_scale: NotNegative   a finite number, 0 or more

Whoever builds a section, the YAML reader or a notebook, gets the same `UsageError`: key, expected, found.
Types are checked by pydantic in strict mode: a string is no number, and True is none either.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Annotated, Any, cast, get_type_hints

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from gpo_data.errors import UsageError


def _path(text: str) -> str:
    if not text or "\0" in text or any(len(part.encode()) > 255 for part in text.split("/")):
        raise ValueError("a path or a name, each part of 1 to 255 bytes")
    return text


MOST_INT, MOST_FLOAT = 10**6, 10**9  # of anything; beyond lie slips of the keyboard, and what no machine can hold
Count = Annotated[int, Field(ge=1, le=MOST_INT)]
Whole = Annotated[int, Field(ge=0, le=MOST_INT)]
MOST_MEMBERS = 10_000  # of a group
Members = Annotated[int, Field(ge=2, le=MOST_MEMBERS)]
Pixels = Annotated[int, Field(ge=8, le=8192)]
Workers = Annotated[int, Field(ge=0, le=256)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0, le=MOST_FLOAT, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=MOST_FLOAT, allow_inf_nan=False)]
Number = Annotated[float, Field(ge=-MOST_FLOAT, le=MOST_FLOAT, allow_inf_nan=False)]
PathText = Annotated[str, AfterValidator(_path)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]  # of a whole
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


def check(section: Any, prefix: str = "") -> None:
    """Raise UsageError for the first field of a dataclass that does not hold what its type says.

    A whole number where any number may be becomes a float: 2 and 2.0 are one fingerprint.
    """
    for name, adapter in adapters(cast(Any, type(section))).items():
        object.__setattr__(section, name, expect_valid(adapter, f"{prefix}{name}", getattr(section, name)))


def holds(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def expect_valid(adapter: TypeAdapter[Any], key: str, value: Any) -> Any:
    """The value. Raises UsageError."""
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        wanted = dict.fromkeys(plain(one["msg"]) for one in error.errors())
        raise UsageError(f"{key}: expected {' or '.join(wanted)}, found {value!r:.200}") from None


def plain(message: str) -> str:
    """pydantic's `Input should be greater than or equal to 1` as `1 or more`."""
    message = message.removeprefix("Input should be ").removeprefix("Value error, ")
    message = re.sub(r"greater than or equal to (\S+)", r"\1 or more", message)
    return re.sub(r"less than or equal to (\S+)", r"\1 or less", message)


def expect(ok: bool, key: str, wanted: str, found: object) -> None:
    """Raise UsageError unless `ok`."""
    if not ok:
        raise UsageError(f"{key}: expected {wanted}, found {found!r:.200}")


@functools.cache
def adapters(kind: Any) -> dict[str, TypeAdapter[Any]]:
    """By field name, of the fields that are not sections themselves."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        f.name: TypeAdapter(hints[f.name])
        for f in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(hints[f.name])
    }

"""A small JSON file that is a dataclass: dataset.json, run.json, an iteration's summary.json, eval.json.

Each field holds what its type says, or the file is damaged; fields that are None are left out, and keys that are not
known are passed over: a newer version may have written them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from gpo_data.errors import UsageError
from gpo_data.lake.durable import write_atomic, write_once
from gpo_data.lake.remote import AnyPath
from gpo_data.recipe.checks import plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    D = TypeVar("D", bound=DataclassInstance)
else:
    D = TypeVar("D")


def read_document(kind: type[D], path: AnyPath, otherwise: str) -> D:
    """The content. Raises FileNotFoundError, and UsageError for what is not one; `otherwise`: what to do then."""
    try:
        made = _adapter(kind).validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: cannot read: {error.strerror}; {otherwise}") from None
    except ValidationError as error:
        raise UsageError(f"{path}: damaged: {'; '.join(_told(error))}; {otherwise}") from None
    return cast(D, made)


def write_document(document: DataclassInstance, path: AnyPath, once: bool = False) -> None:
    """`once`: on an object store what another machine has put there stays."""
    content = {k: v for k, v in dataclasses.asdict(document).items() if v is not None}
    (write_once if once else write_atomic)(path, json.dumps(content, indent=2, ensure_ascii=False).encode())


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _told(error: ValidationError) -> list[str]:
    """What is wrong, the first three."""
    told = []
    for one in error.errors()[:3]:
        key = ".".join(str(part) for part in one["loc"])
        if one["type"] == "json_invalid":
            told.append(f"not JSON ({one['msg'].removeprefix('Invalid JSON: ')})")
        elif one["type"] == "missing":
            told.append(f"it lacks {key}")
        elif not key:
            told.append(f"expected an object, found {type(one['input']).__name__}")
        else:
            told.append(f"{key}: expected {plain(one['msg'])}, found {one['input']!r:.80}")
    return told

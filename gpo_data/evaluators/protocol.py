"""What a scorer and whoever asks it say to each other over HTTP; docs/judges.md has it for people.

    GET  /        {"protocol": 1, "name", "version", "columns": {column: kind}}
    POST /score   {"images": [base64 of a PNG, JPEG or WebP], "prompts": [text], "targets": [object]}
                  or multipart/form-data: files `images` in order, and fields `prompts` and `targets`, JSON
    answer        {"scores": [a number, or an object of columns, or null, or {"error": why}, one a picture]}

A kind is `double`, `int64`, `int32`, `string` or `bool`, `[kind]` for a list, `{name: kind}` for a struct. A scorer
that answers numbers needs no GET: it has one column, double, with the name that the recipe gives it.

What always holds: order is kept; null is "not measured"; what does not fit is an error, never a guess.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from gpo_data import pictures
from gpo_data.errors import words

PROTOCOL = 1
SCORE = "/score"
TOKEN_VARIABLE = "GPO_JUDGE_TOKEN"  # the environment's, of asker and scorer
KINDS: dict[str, pa.DataType] = {
    "double": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "string": pa.string(),
    "bool": pa.bool_(),
}


class Malformed(ValueError):
    """A message is not what it should be; says what was expected and what was found."""


@dataclass(frozen=True)
class Request:
    images: list[np.ndarray]  # uint8 [H, W, 3] RGB
    targets: list[dict[str, Any]]  # with `prompt`


def not_finite(value: Any) -> float | None:
    """A number in it, however deep in lists and structs, that is NaN or infinite: JSON has none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for one in inner if (found := not_finite(one)) is not None), None)


def kind_of(type: pa.DataType) -> Any:
    """An Arrow type as the protocol writes it."""
    if pa.types.is_list(type):
        return [kind_of(type.value_type)]
    if pa.types.is_struct(type):
        return {field.name: kind_of(field.type) for field in type}
    return next((name for name, one in KINDS.items() if one == type), str(type))


def type_of(kind: Any) -> pa.DataType:
    """The inverse. Raises Malformed."""
    if isinstance(kind, list) and len(kind) == 1:
        return pa.list_(type_of(kind[0]))
    if isinstance(kind, dict) and kind:
        return pa.struct([(name, type_of(one)) for name, one in kind.items()])
    if not isinstance(kind, str) or kind not in KINDS:
        raise Malformed(f"a column's kind: expected {', '.join(KINDS)}, [kind] or {{name: kind}}, found {kind!r:.100}")
    return KINDS[kind]


def png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> PNG, quickly."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def picture(data: bytes, where: str) -> np.ndarray:
    """The inverse, of any kind of pictures.py: uint8 [H, W, 3] RGB. Raises Malformed."""
    kind = pictures.kind_of(data)
    if kind is None:
        raise Malformed(f"{where}: expected a picture, {', '.join(pictures.KINDS)}, found {data[:8]!r}")
    try:
        return np.asarray(pictures.decoded(data, kind))
    except pictures.TooLarge as error:
        raise Malformed(f"{where}: {error}") from None
    except Exception as error:  # Pillow raises many kinds on damaged bytes
        raise Malformed(f"{where}: a damaged {kind}: {words(error, 200)}") from None


def json_body(images: list[bytes], targets: list[dict[str, Any]]) -> dict[str, Any]:
    return {"images": [base64.b64encode(one).decode() for one in images], **_texts(targets)}


def multipart_fields(images: list[bytes], targets: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """As urllib3 takes them."""
    files = [("images", (f"{i:04d}.png", one, "image/png")) for i, one in enumerate(images)]
    return [*files, *((name, json.dumps(value)) for name, value in _texts(targets).items())]


def _texts(targets: list[dict[str, Any]]) -> dict[str, Any]:
    return {"prompts": [target.get("prompt", "") for target in targets], "targets": targets}


def request_of(images: list[Any], prompts: Any, targets: Any) -> Request:
    """What a scorer is asked. `images` are bytes, or base64 texts. Raises Malformed."""
    if not isinstance(images, list) or not images:
        raise Malformed("images: expected a list of pictures, found none")
    decoded = [picture(_bytes(one, i), f"images[{i}]") for i, one in enumerate(images)]
    for name, value, kind in (("prompts", prompts, str), ("targets", targets, dict)):
        if value is not None and (
            not isinstance(value, list) or len(value) != len(images) or not all(isinstance(one, kind) for one in value)
        ):
            raise Malformed(f"{name}: expected a list of {len(images)} {kind.__name__}, one a picture, or nothing")
    rows = [dict(target) for target in targets] if targets is not None else [{} for _ in images]
    for row, prompt in zip(rows, prompts if prompts is not None else [""] * len(images), strict=True):
        row.setdefault("prompt", prompt)
    return Request(decoded, rows)


def _bytes(one: Any, index: int) -> bytes:
    if isinstance(one, bytes):
        return one
    try:
        return base64.b64decode(one, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise Malformed(f"images[{index}]: expected a picture in base64, found {str(one)[:40]!r}") from None


@dataclass(frozen=True)
class Described:
    """A scorer's answer to GET /; of one that does not answer it, a number a picture."""

    version: str
    columns: dict[str, pa.DataType]
    bare: bool = False


def described(answer: Any) -> Described:
    """Raises Malformed."""
    if not isinstance(answer, dict) or not isinstance(columns := answer.get("columns"), dict) or not columns:
        raise Malformed(f"expected an object with version and columns, found {answer!r:.200}")
    if (protocol := answer.get("protocol", PROTOCOL)) != PROTOCOL:
        raise Malformed(f"expected protocol {PROTOCOL}, found {protocol!r:.40}")
    return Described(str(answer.get("version", "0")), {str(name): type_of(kind) for name, kind in columns.items()})


@dataclass(frozen=True)
class Score:
    """Of one picture: a row, or why there is none."""

    row: dict[str, Any] | None
    error: str | None = None


def scores_of(answer: Any, number: int, name: str, columns: dict[str, pa.DataType]) -> list[Score]:
    """The scores of `number` pictures; a bare number is the column `name`. Raises Malformed."""
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or len(scores) != number:
        found = f"{len(scores)}" if isinstance(scores, list) else f"{answer!r:.200}"
        raise Malformed(f"expected {{'scores': [...]}} with one of each of {number} pictures, found {found}")
    return [_score(one, name, columns) for one in scores]


def _score(one: Any, name: str, columns: dict[str, pa.DataType]) -> Score:
    if one is None:
        return Score(dict.fromkeys(columns))
    if isinstance(one, dict) and one.keys() == {"error"}:
        return Score(None, str(one["error"])[:300])
    row = one if isinstance(one, dict) else {name: one}
    if row.keys() != columns.keys():
        raise Malformed(f"expected the columns {', '.join(columns)}, found {', '.join(map(str, row)) or 'none'}")
    try:
        typed = {key: pa.array([row[key]], columns[key])[0].as_py() for key in columns}
    except (pa.ArrowException, OverflowError) as error:
        raise Malformed(f"expected {columns}, found {row!r:.200} ({' '.join(str(error).split())[:100]})") from None
    for key, value in typed.items():
        if (wrong := not_finite(value)) is not None:
            return Score(None, f"{key} is {wrong}")
    return Score(typed)

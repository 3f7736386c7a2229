"""The parts of a group's sample, opened as what their names say they are, and within limits.

    group.json             JSON with the fields of a group, each list as long as there are members
    *.safetensors          tensors, behind a header of at most HEADER bytes
    00.png, 00.webp, ...   a picture of exactly that format, within pictures.py's limit

Shards are shared, so a part may be anything: a picture that is a program to another decoder, a header that promises
terabytes. What is not as it should be is damage (`Damage`), never data, and never another error. Everybody who opens a
part does it here, so that what `gpo-data verify` finds whole can be opened.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import torch
from PIL import Image
from safetensors.torch import load as load_safetensors

from gpo_data.errors import words
from gpo_data.pictures import TooLarge, decoded

HEADER = 2**20  # bytes; the header of a group's tensors has a few hundred
GROUP_JSON = 2**26  # bytes
FORMATS = {"png": "PNG", "webp": "WEBP"}
KEY = r"[a-z0-9_-]+"
PICTURE = re.compile(r"(\d{2,6})\.(png|webp)")
FILES = ("group.json", "latents.safetensors", "prompt.safetensors")
UNCONDITIONAL = "unconditional.safetensors"  # not in every group

_TEXT, _LIST = (str,), (list,)
FIELDS: dict[str, tuple[type, ...]] = {"key": _TEXT, "prompt_id": _TEXT, "prompt": _TEXT, "target": (dict,)}
# Of each member; `reasons` is not always there.
LISTS: dict[str, tuple[type, ...]] = {
    "seeds": (int,),
    "statuses": _TEXT,
    "measurements": (dict,),
    "rewards": (int, float, type(None)),
    "reasons": (str, type(None)),
}


class Damage(ValueError):
    """A part is not what it should be; the message says what was expected and what was found."""


class Archive(Mapping[str, bytes]):
    """One sample: its files by extension, read when they are asked for.

    key: of the sample. places: (first byte, size) of each file, in the stream.
    """

    def __init__(self, stream: BinaryIO, key: str, places: dict[str, tuple[int, int]]) -> None:
        self.key, self.places, self._stream = key, places, stream

    def __getitem__(self, name: str) -> bytes:
        first, size = self.places[name]
        self._stream.seek(first)
        return self._stream.read(size)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def open_archive(source: bytes | BinaryIO, size: int | None = None) -> Archive:
    """The sample in tar blocks, or in the next `size` bytes of a stream. Raises Damage."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    end = stream.tell() + (len(source) if isinstance(source, bytes) else size or 0)
    places: dict[str, tuple[int, int]] = {}
    keys: set[str] = set()
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (entry := archive.next()) is not None and entry.offset < end:
                name = re.fullmatch(rf"({KEY})\.(.+)", entry.name)
                if name is None or not entry.isreg() or entry.issparse():
                    raise Damage(f"expected files named <key>.<part>, found {entry.name[:100]!r}")
                if name[2] not in (*FILES, UNCONDITIONAL) and not PICTURE.fullmatch(name[2]):
                    raise Damage(f"expected group.json, tensors and pictures, found {name[2][:100]!r}")
                if name[2] in places:
                    raise Damage(f"{name[2]} is there twice")
                if entry.offset_data + entry.size > end:
                    raise Damage(f"{name[2]}: expected {entry.size} bytes, found {end - entry.offset_data}")
                keys.add(name[1])
                places[name[2]] = (entry.offset_data, entry.size)
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise error if isinstance(error, Damage) else Damage(f"not a tar: {words(error, 200)}") from None
    if len(keys) != 1:
        raise Damage(f"expected one key in a sample, found {', '.join(sorted(keys)) or 'none'}")
    if missing := [name for name in FILES if name not in places]:
        raise Damage(f"lacks {', '.join(missing)}")
    return Archive(stream, keys.pop(), places)


def open_json(data: bytes) -> dict[str, Any]:
    """The content of a group.json. Raises Damage."""
    if len(data) > GROUP_JSON:
        raise Damage(f"group.json: expected at most {GROUP_JSON} bytes, found {len(data)}")
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damage(f"group.json: not JSON: {words(error, 200)}") from None
    if not isinstance(meta, dict):
        raise Damage(f"group.json: expected an object, found {type(meta).__name__}")
    for name, kinds in FIELDS.items():
        if not isinstance(meta.get(name), kinds):
            raise Damage(f"group.json: {name}: expected {kinds[0].__name__}, found {type(meta.get(name)).__name__}")
    size = len(meta["seeds"]) if isinstance(meta.get("seeds"), list) else 0
    for name, kinds in LISTS.items():
        values = meta.get(name, [None] * size if name == "reasons" else None)
        if not isinstance(values, list) or not size or len(values) != size:
            raise Damage(f"group.json: {name}: expected a list of one entry a member, {size or 'one or more'}")
        if not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
            raise Damage(f"group.json: {name}: expected entries of {' or '.join(kind.__name__ for kind in kinds)}")
    return meta


def pictures_of(names: Iterable[str]) -> dict[int, str]:
    """{member: name of its picture} among the names of a sample's files."""
    return {int(found[1]): name for name in names if (found := PICTURE.fullmatch(name))}


def header_length(first: bytes, size: int, name: str) -> int:
    """Bytes of the JSON in a .safetensors of `size` bytes that begins with these eight. Raises Damage."""
    length = int.from_bytes(first, "little") if len(first) >= 8 else 0
    if not 0 < length <= min(HEADER, size - 8):
        raise Damage(f"{name}: expected a header of at most {HEADER} bytes, found {length} in {size} bytes")
    return length


def open_tensors(data: bytes, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors. Raises Damage."""
    header_length(data[:8], len(data), name)
    try:
        return load_safetensors(data)
    except Exception as error:  # the library raises many kinds on damaged bytes
        raise Damage(f"{name}: not safetensors: {words(error, 200)}") from None


def open_picture(data: bytes, name: str) -> Image.Image:
    """The picture of a part `00.png`, decoded, in RGB. Raises Damage."""
    kind = FORMATS[name.rpartition(".")[2]]
    try:
        return decoded(data, kind)
    except TooLarge as error:
        raise Damage(f"{name}: {error}") from None
    except Exception as error:  # Pillow raises many kinds on damaged bytes
        raise Damage(f"{name}: not a {kind} picture: {words(error, 200)}") from None

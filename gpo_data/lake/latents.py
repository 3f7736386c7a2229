"""Latents of a group that is too large to hold: each member is a record of its own, read when its row is asked for.

    latents.safetensors    8 bytes n, little-endian; n bytes of JSON {"latents": {dtype, shape, data_offsets}}; values

What always holds: a row's bytes are those of the record that was checked as a whole (each has a crc32, taken then), and
rows of members that are ok are finite. Groups below LARGE bytes, and those in an object store, where a row would be a
request, are held.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from gpo_data import status
from gpo_data.group import NOT_FINITE, Group, from_sample
from gpo_data.lake.cache import Cache
from gpo_data.lake.record import Record
from gpo_data.parts import Archive, Damage, header_length, open_archive

LARGE = 2**26  # bytes of a record
PART = "latents.safetensors"
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class StoredLatents:
    """[n, C, h, w], of which `[rows]` reads some; `[:]` reads all.

    rows: a record of each member's values. finite: whether they have to be.
    """

    rows: tuple[Record, ...]
    finite: tuple[bool, ...]
    dtype: torch.dtype
    of_member: tuple[int, ...]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.of_member))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor | slice | Sequence[int]) -> Tensor:
        """Raises RunError."""
        wanted = torch.arange(len(self))[rows if isinstance(rows, slice | Tensor) else list(rows)].tolist()
        found = torch.empty((len(wanted), *self.of_member), dtype=self.dtype)
        for place, row in enumerate(wanted):
            record = self.rows[row]
            found[place] = torch.frombuffer(bytearray(record.blocks()), dtype=self.dtype).view(self.of_member)
            if self.finite[row] and not found[place].isfinite().all():
                raise record.damaged(NOT_FINITE)
        return found


def joined(parts: Sequence[Tensor | StoredLatents]) -> Tensor | StoredLatents:
    """The members of all parts, read by rows where all of them are."""
    stored = [part for part in parts if isinstance(part, StoredLatents)]
    if len(parts) == 1:
        return parts[0]
    if len(stored) < len(parts) or len({(part.dtype, part.of_member) for part in stored}) > 1:
        return torch.cat([part[:] for part in parts])
    rows = tuple(row for part in stored for row in part.rows)
    return dataclasses.replace(stored[0], rows=rows, finite=tuple(one for part in stored for one in part.finite))


def open_group(
    record: Record, members: Sequence[int], cache: Cache | None, large: float = LARGE
) -> tuple[Group, Tensor | StoredLatents]:
    """The group without its pictures, and the latents of some members. Raises RunError.

    Args:
        large: bytes of a local record from which on latents are not held.
    """
    if "://" in record.tar or record.size < min(large, LARGE):
        group = record.group(cache, images=False)
        _expect(record, members, group)
        # Of a whole group they are not copied.
        return group, group.latents if list(members) == list(range(group.size)) else group.latents[list(members)]
    with record.stream() as stream:
        try:
            archive = open_archive(stream, record.size)
            group = from_sample(archive, images=False, latents=False)
            _expect(record, members, group)
            latents = _stored(record.tar, stream, archive, members, group.statuses)
            return group, latents if record.size >= large else latents[:]
        except Damage as damage:
            raise record.damaged(str(damage)) from None


def _expect(record: Record, members: Sequence[int], group: Group) -> None:
    if not 0 <= min(members) <= max(members) < group.size:
        raise record.damaged(f"expected members {members}, found {group.size} of them")


def _stored(
    tar: str, stream: BinaryIO, archive: Archive, members: Sequence[int], statuses: Sequence[str]
) -> StoredLatents:
    """Raises Damage."""
    first, size = archive.places[PART]
    stream.seek(first)
    length = header_length(stream.read(8), size, PART)
    try:
        facts = json.loads(stream.read(length))["latents"]
        dtype, shape = DTYPES[facts["dtype"]], tuple(map(int, facts["shape"]))
        begin, end = map(int, facts["data_offsets"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Damage(f"{PART}: expected numbers named latents, found no such header") from None
    of_member = math.prod(shape[1:]) * dtype.itemsize
    inside = min(shape, default=0) > 0 and 0 <= begin <= end <= size - 8 - length
    if len(shape) != 4 or shape[0] != len(statuses) or not inside or end - begin != shape[0] * of_member:
        raise Damage(f"{PART}: expected numbers of shape [{len(statuses)}, C, h, w], found {facts}"[:500])

    def row(member: int) -> Record:
        at = first + 8 + length + begin + member * of_member
        stream.seek(at)
        return Record(tar, at, of_member, zlib.crc32(stream.read(of_member)))

    finite = tuple(statuses[member] == status.OK for member in members)
    return StoredLatents(tuple(map(row, members)), finite, dtype, shape[1:])

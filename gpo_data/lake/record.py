"""Where a group's record lies, and what it holds: a row of a sidecar names tar, offset, size and crc32.

What always holds: bytes that do not match their crc32 are never data, a record lies in its dataset's own folder, and
its parts are opened within limits (parts.py). Damage is a RunError that names the tar and the command that repairs it.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpo_data.errors import RunError
from gpo_data.group import Group, from_sample
from gpo_data.lake.cache import Cache
from gpo_data.lake.remote import AnyPath, RemotePath
from gpo_data.lake.sidecar import REPAIR
from gpo_data.parts import Damage, open_archive

PLACE = ("tar", "offset", "size", "crc32")  # the columns that make a record


@dataclass(frozen=True)
class Record:
    """One group's place: `tar` is a path, or a URL."""

    tar: str
    offset: int
    size: int
    crc32: int

    @classmethod
    def of(cls, row: Mapping[str, Any], folder: AnyPath | str) -> Record:
        """The record of a sidecar's row, in the dataset's folder. Raises RunError."""
        tar, offset, size, crc32 = (row[name] for name in PLACE)
        if not isinstance(tar, str) or not re.fullmatch(r"shard-\d{6,}\.tar", tar):
            raise RunError(f"{folder}: a row names the tar {tar!r}, expected a shard of this folder; {REPAIR}")
        if not all(isinstance(number, int) for number in (offset, size, crc32)) or offset < 0 or size <= 0:
            raise RunError(f"{folder}/{tar}: a row says offset {offset}, size {size}, crc32 {crc32}; {REPAIR}")
        return cls(f"{folder}/{tar}", offset, size, crc32)

    def group(self, cache: Cache | None = None, images: bool = True) -> Group:
        """The group, checked. Raises RunError. `images=False` leaves the previews undecoded."""
        try:
            return from_sample(self.read(cache), images)
        except Damage as damage:
            raise self.damaged(str(damage)) from None

    def read(self, cache: Cache | None = None) -> dict[str, bytes]:
        """The group's files by extension, as bytes. Raises RunError that names the shard and the repair.

        `cache`: keeps what was read from an object store.
        """
        try:
            return open_archive(self.blocks(cache))[1]
        except Damage as damage:
            raise self.damaged(str(damage)) from None

    def blocks(self, cache: Cache | None = None) -> bytes:
        """The record's bytes, checked by their crc32. Raises RunError."""
        try:
            blocks = self._range(cache) if "://" in self.tar else self._pread()
        except FileNotFoundError:
            raise RunError(
                f"{self.tar}: no such file, though its rows are committed: moved, or removed by online.keep_last; "
                f"`gpo-data verify RECIPE --repair` and then `gpo-data shards RECIPE` draw it again"
            ) from None
        except OSError as error:
            raise RunError(f"{self.tar}: cannot read: {error.strerror or error}; {REPAIR}") from None
        if len(blocks) != self.size or zlib.crc32(blocks) != self.crc32:
            raise self.damaged(
                f"expected crc32 {self.crc32:#010x}, found {zlib.crc32(blocks):#010x} over {len(blocks)} bytes"
            )
        return blocks

    def damaged(self, how: str) -> RunError:
        return RunError(f"{self.tar}: damaged at bytes {self.offset} to {self.offset + self.size}: {how}; {REPAIR}")

    def _range(self, cache: Cache | None) -> bytes:
        """From an object store: one request."""
        tar, end = RemotePath(self.tar), self.offset + self.size
        if cache is None:
            return tar.read_range(self.offset, end)
        key = f"{self.tar} {self.offset} {self.size} {self.crc32}"
        return cache.get(key, lambda: tar.read_range(self.offset, end))

    def _pread(self) -> bytes:
        with Path(self.tar).open("rb") as stream:
            there = max(os.fstat(stream.fileno()).st_size - self.offset, 0)
            return os.pread(stream.fileno(), min(self.size, there), self.offset)  # no memory for what is not there

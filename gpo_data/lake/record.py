"""Where a group's record lies, and what it holds: a row of a sidecar names tar, offset, size and crc32.

What always holds: bytes that do not match their crc32 are never data, a record lies in its dataset's own folder, and
its parts are opened within limits (parts.py). Damage is a RunError that names the tar and the command that repairs it.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpo_data.errors import RunError
from gpo_data.group import Group, from_sample
from gpo_data.lake.cache import Cache
from gpo_data.lake.remote import AnyPath, RemotePath
from gpo_data.lake.sidecar import REPAIR
from gpo_data.parts import Archive, Damage, open_archive

PLACE = ("tar", "offset", "size", "crc32")  # the columns that make a record
BLOCK = 2**20  # bytes that are looked at together, of a record that is not held


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
        return self.opened(self.blocks(cache), images)

    def opened(self, blocks: bytes, images: bool = True) -> Group:
        """The group of bytes that `blocks` gave. Raises RunError."""
        try:
            return from_sample(open_archive(blocks), images)
        except Damage as damage:
            raise self.damaged(str(damage)) from None

    def read(self, cache: Cache | None = None) -> Archive:
        """The group's files by extension. Raises RunError that names the shard and the repair.

        `cache`: keeps what was read from an object store.
        """
        try:
            return open_archive(self.blocks(cache))
        except Damage as damage:
            raise self.damaged(str(damage)) from None

    def blocks(self, cache: Cache | None = None) -> bytes:
        """The record's bytes, checked by their crc32. Raises RunError."""
        with self._told():
            blocks = self._range(cache) if "://" in self.tar else self._pread()
        self._check(len(blocks), zlib.crc32(blocks))
        return blocks

    @contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        """A local tar at the record's first byte; the record was read through and checked, and is not held."""
        with self._told(), Path(self.tar).open("rb") as stream:
            stream.seek(self.offset)
            crc32, left = 0, self.size
            while left and (block := stream.read(min(left, BLOCK))):
                crc32, left = zlib.crc32(block, crc32), left - len(block)
            self._check(self.size - left, crc32)
            stream.seek(self.offset)
            yield stream

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise RunError(
                f"{self.tar}: no such file, though its rows are committed: moved, or removed by online.keep_last; "
                f"`gpo-data verify RECIPE --repair` and then `gpo-data shards RECIPE` draw it again"
            ) from None
        except OSError as error:
            raise RunError(f"{self.tar}: cannot read: {error.strerror or error}; {REPAIR}") from None

    def _check(self, size: int, crc32: int) -> None:
        if (size, crc32) != (self.size, self.crc32):
            raise self.damaged(f"expected crc32 {self.crc32:#010x}, found {crc32:#010x} over {size} bytes")

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

"""Where a group's record lies, and its bytes: a row of a sidecar names tar, offset, size and crc32.

What always holds: bytes that do not match their crc32 are never data, and a record lies in its dataset's own folder.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from gpo_data.errors import RunError
from gpo_data.lake.shard import unpack_sample


@dataclass(frozen=True)
class Record:
    """One group's place: `tar` is a path, or an fsspec path."""

    tar: str
    offset: int
    size: int
    crc32: int

    @classmethod
    def of(cls, row: Mapping[str, Any], folder: Path | str) -> Record:
        """The record of a sidecar's row, in the dataset's folder. Raises RunError."""
        if row["tar"] != os.path.basename(row["tar"]):  # noqa: PTH119 - of a path that may be another system's
            raise RunError(
                f"{folder}: a row names the tar {row['tar']!r}, expected a file of this folder; "
                f"run `gpo-data verify RECIPE --repair`"
            )
        return cls(f"{folder}/{row['tar']}", row["offset"], row["size"], row["crc32"])

    def read(self, files: fsspec.AbstractFileSystem | None = None) -> dict[str, bytes]:
        """The group's files by extension, checked. Raises RunError that names the shard and the repair.

        `files`: where `tar` lies; None is this machine.
        """
        try:
            blocks = files.cat_file(self.tar, self.offset, self.offset + self.size) if files else self._pread()
        except FileNotFoundError:
            raise RunError(
                f"{self.tar}: no such file, though its rows are committed: moved, or removed by online.keep_last; "
                f"`gpo-data verify RECIPE --repair` and then `gpo-data shards RECIPE` draw it again"
            ) from None
        if len(blocks) != self.size or zlib.crc32(blocks) != self.crc32:
            raise RunError(
                f"{self.tar}: damaged at bytes {self.offset} to {self.offset + self.size}: expected crc32 "
                f"{self.crc32:#010x}, found {zlib.crc32(blocks):#010x} over {len(blocks)} bytes; run `gpo-data verify "
                f"RECIPE --repair`"
            )
        return unpack_sample(blocks)[1]

    def _pread(self) -> bytes:
        with Path(self.tar).open("rb") as stream:
            return os.pread(stream.fileno(), self.size, self.offset)

"""Many small sidecars as few larger files, for questions: opening thousands of files is what they cost.

    $GPO_SCRATCH/gathered/<lake>/<part>.members.parquet    rows of about PART sidecars, with `dataset` and `filename`
    $GPO_SCRATCH/gathered/<lake>/<part>.footers.parquet    what their footers say: file_name, key, value

A copy on this machine, never the lake's truth: training and `verify` read the sidecars.
`<part>` is a hash over the name, size and time (or the store's version) of each sidecar in it, so that one that changed
is in another part. The parts are cut where a hash of the name says: a new sidecar changes one part, wherever it comes.

What always holds: the same rows as the sidecars give; a part is there whole or not at all; where none can be written,
and where a sidecar cannot be read, the sidecars are asked instead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb

from gpo_data.lake.files import SHARDS, Files
from gpo_data.lake.locked import stopped_by_ctrl_c
from gpo_data.lake.remote import scratch
from gpo_data.lake.sql import listed, quote, read_parquet

FEWEST = 200  # sidecars; of fewer the question costs less than half a second
MOST = 10**10  # bytes of all sidecars
ROOM = 3  # times their bytes, that are free
PART = 256  # sidecars in a part, on average
KEPT = 3 * 24 * 3600  # seconds that a part stays when no question uses it


@dataclass(frozen=True)
class Gathered:
    folder: Path
    parts: tuple[str, ...]

    @property
    def members(self) -> str:
        """SQL of what `read_parquet` gives of the sidecars."""
        return f"(SELECT * FROM read_parquet({self._files('members')}, union_by_name = true))"

    @property
    def footers(self) -> str:
        """SQL of what `parquet_kv_metadata` gives of them."""
        return f"(SELECT * FROM read_parquet({self._files('footers')}))"

    def remove(self) -> None:
        """Of a part that cannot be read: the next question makes it again."""
        for part in self.parts:
            with suppress(OSError):
                (self.folder / f"{part}.members.parquet").unlink()

    def _files(self, kind: str) -> str:
        return listed([str(self.folder / f"{part}.{kind}.parquet") for part in self.parts])


def gather(con: duckdb.DuckDBPyConnection, files: Files) -> Gathered | None:
    """The parts of a lake, made where they are missing; None where the sidecars had better be asked."""
    paths = files.found(SHARDS)
    if len(paths) < FEWEST:
        return None
    try:
        stamps = {path: files.stamp(path) for path in paths}
        size = sum(stamp.size for stamp in stamps.values())
        folder = scratch().resolve() / "gathered" / _hash(files.prefix)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {_hash(*(f"{path}\0{stamps[path]}" for path in part)): part for part in _cut(paths, files.folder)}
        there = all((folder / f"{name}.members.parquet").exists() for name in parts)
        if size > MOST or (not there and shutil.disk_usage(folder).free < ROOM * size):
            return None
        made = False
        with stopped_by_ctrl_c():
            for name, part in parts.items():
                made |= _make(con, files, folder, name, part)
        if made:
            _remove_unused(folder.parent)
        return Gathered(folder, tuple(parts))
    except (OSError, duckdb.Error):
        return None  # no room, a sidecar that was taken away meanwhile, or a damaged one, which views.py names


def _cut(paths: Sequence[str], folder: str) -> list[list[str]]:
    """By names in the lake, wherever that lies."""
    parts: list[list[str]] = [[]]
    for path in paths:
        parts[-1].append(path)
        if int(_hash(path.removeprefix(folder)), 16) % PART == 0:
            parts.append([])
    return [part for part in parts if part]


def _make(con: duckdb.DuckDBPyConnection, files: Files, folder: Path, name: str, part: list[str]) -> bool:
    """Whether it was missing."""
    members, footers = (folder / f"{name}.{kind}.parquet" for kind in ("members", "footers"))
    if members.exists():
        for path in (members, footers):
            os.utime(path)
        return False
    files.fetch(part)
    patterns = files.exact(part)
    _write(con, footers, f"SELECT * FROM parquet_kv_metadata({listed(patterns)}) WHERE decode(key) <> 'ARROW:schema'")
    _write(con, members, f"SELECT * FROM {read_parquet(files, patterns)}")  # the last: a part is there when it is
    return True


def _write(con: duckdb.DuckDBPyConnection, path: Path, query: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        con.execute(f"COPY ({query}) TO {quote(str(temporary))} (FORMAT parquet, COMPRESSION zstd)")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_unused(gathered: Path) -> None:
    """Of this lake and others; a part that another process may be reading has been used of late."""
    oldest = time.time() - KEPT
    for path in gathered.glob("*/*"):
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def _hash(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()

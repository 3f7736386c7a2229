"""Which files of a lake the views read, on this machine or behind an fsspec URL."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import duckdb
import fsspec

from gpo_data.errors import UsageError, few
from gpo_data.lake.mirror import Mirror
from gpo_data.lake.remote import is_shard, place, version_of

SHARDS = "shard-*.parquet"


class Stamp(NamedTuple):
    size: int
    version: str


@dataclass(frozen=True)
class Files:
    """The lake's folder as fsspec (`folder`) and DuckDB (`prefix`) name it; `names`: of the datasets, None is all."""

    store: fsspec.AbstractFileSystem
    folder: str
    prefix: str
    names: tuple[str, ...] | None = None
    listed: dict[str, list[str]] = field(default_factory=dict, compare=False)
    copies: list[str] = field(default_factory=list, compare=False)

    def found(self, name: str) -> list[str]:
        """Paths of the datasets' files of that name, which may be a pattern; sorted, as fsspec names them.

        The folders are listed once: a lake may have thousands.
        """
        if name not in self.listed:
            patterns = ["dataset=*"] if self.names is None else [f"dataset={glob.escape(one)}" for one in self.names]
            self.listed[name] = [
                path
                for one in patterns
                for path in sorted(self._glob(f"{glob.escape(self.folder)}/{one}/{name}"))
                if self._counts(path, name)
            ]
        return self.listed[name]

    def _counts(self, path: str, name: str) -> bool:
        """Not a copy of a shard, `shard-000000 (copy).parquet`, which a pattern of shards fits."""
        if not name.endswith(SHARDS) or is_shard(path):
            return True
        self.copies.append(path)
        return False

    def _glob(self, pattern: str) -> list[str]:
        if "://" not in self.prefix:
            return glob.glob(pattern)  # noqa: PTH207 - six times as fast as fsspec's, and strings are wanted
        return list(self.store.glob(pattern))

    def patterns(self, name: str) -> list[str]:
        """The same as DuckDB's patterns, which each fit some file and are about to be read."""
        self.fetch(self.found(name))
        if self.copies:
            return self.exact(self.found(name))
        if self.names is None:
            return [self.everywhere(name)]
        have = {dataset_of(path) for path in self.found(name)}
        return [f"{glob.escape(self.prefix)}/dataset={glob.escape(one)}/{name}" for one in self.names if one in have]

    def fetch(self, paths: Sequence[str]) -> None:
        """Have these files of an object store on this machine."""
        if isinstance(self.store, Mirror):
            self.store.fetch(paths)

    def stamp(self, path: str) -> Stamp:
        """Changes with a file of `found`. Raises OSError."""
        if isinstance(self.store, Mirror):
            info = self.store.info(path)
            return Stamp(info["size"], version_of(info))
        told = os.stat(path)  # noqa: PTH116 - thousands at a time
        return Stamp(told.st_size, f"{told.st_mtime_ns} {told.st_ino}")

    def everywhere(self, name: str) -> str:
        """DuckDB's pattern of the files of that name in all datasets."""
        return f"{glob.escape(self.prefix)}/dataset=*/{name}"

    def exact(self, paths: Sequence[str]) -> list[str]:
        """DuckDB's patterns that fit these paths of `found` alone."""
        return [glob.escape(self.prefix + path[len(self.folder) :]) for path in paths]

    def of(self, names: Sequence[str]) -> Files:
        return dataclasses.replace(self, names=tuple(names), listed={}, copies=[])

    def datasets(self) -> list[str]:
        """Names of the datasets that have a manifest or a committed shard."""
        return sorted({dataset_of(path) for name in ("dataset.json", SHARDS) for path in self.found(name)})

    @property
    def readable(self) -> list[str]:
        """The folders that a connection reads, as DuckDB compares them."""
        if "://" not in self.prefix:
            found = [self.prefix + "/"]
        else:
            scheme, _, rest = self.prefix.partition("://")
            found = [f"{scheme}://{rest}/", f"{scheme}:///{rest}/"]  # paths that fsspec lists may begin with a slash
        return list(dict.fromkeys([*found, *map(glob.escape, found)]))  # a pattern is compared as it is written


def dataset_of(path: str) -> str:
    """The dataset that a file of a lake lies in."""
    return next(part for part in reversed(path.split("/")) if part.startswith("dataset=")).removeprefix("dataset=")


def open_lake(con: duckdb.DuckDBPyConnection | None, lake: str) -> Files:
    """The files of a lake; a connection learns to read them. Raises UsageError."""
    where = place(lake)
    if isinstance(where, Path):
        folder = str(where.resolve())
        return Files(fsspec.filesystem("file"), folder, folder)
    mirror = Mirror(where.url)
    if con is not None:
        con.register_filesystem(mirror)
    return Files(mirror, mirror.root, f"{urlsplit(where.url).scheme}://{mirror.root.lstrip('/')}")


def matching(lake: str, pattern: str, key: str) -> list[str]:
    """Names of the lake's datasets that `pattern`, such as text-tiny-online-it*, stands for, sorted. Raises UsageError
    where there is none; `key` is where the pattern stands."""
    present = sorted(open_lake(None, lake).datasets())
    found = fnmatch.filter(present, pattern)
    if not found:
        raise UsageError(f"{key}: no dataset of {lake} matches {pattern!r}; there are: {few(present)}")
    return found


def require(lake: str, names: Sequence[str] = ()) -> None:
    """Raise UsageError where there is no lake at all, or none of these datasets in it.

    A question to it would look like one without an answer.
    """
    files = open_lake(None, lake)
    for name in names:
        if not files.of([name]).datasets():
            raise UsageError(f"lake {lake}: no dataset {name!r}; there are: {few(files.datasets())}")
    if not names and not files.datasets():
        there = "no dataset in it" if files.store.isdir(files.folder) else "no such folder"
        raise UsageError(f"lake: {lake}: {there}; `gpo-data shards RECIPE` draws one, `--lake FOLDER` names another")

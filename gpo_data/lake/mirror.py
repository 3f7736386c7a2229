"""A lake behind a URL as DuckDB reads it: an fsspec filesystem over the store's own.

DuckDB opens every sidecar again for each view and each question, and its own reader of object stores is an extension
that has to be downloaded. So a store is listed once a connection, a folder in one go (a thousand names a request), and
small files come whole, many at a time, into a folder of this machine, under the version that the listing says. What
did not change is read there the next time.
"""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import fsspec

from gpo_data.lake.cache import Cache
from gpo_data.lake.remote import AnyPath, RemotePath, is_shard, open_store, scratch, version_of
from gpo_data.lake.store_errors import explaining, lacks_bucket

SIZE = 20 * 10**9  # bytes of the folder; a million members have about 0.1 GB of sidecars
AT_ONCE = 64  # files under way


class Mirror(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Reads only. Paths are those of the store."""

    cachable = False  # a connection has its own

    def __init__(self, url: str) -> None:
        super().__init__(use_listings_cache=False)
        self.url = url
        self.store, self.root = open_store(url)
        # As the lake names it: a store has several schemes, and DuckDB is allowed paths of this one.
        self.protocol = url.partition("://")[0]
        self.cache = Cache(scratch() / "sidecars", SIZE)
        self._listed: dict[str, dict[str, Any]] = {}  # by folder: {path: what the store says of it}

    def _strip_protocol(self, path: str) -> str:
        return str(self.store._strip_protocol(path))

    def unstrip_protocol(self, name: str) -> str:
        return f"{self.protocol}://{name.lstrip('/')}"

    def listing(self, folder: str) -> dict[str, Any]:
        """{path: what the store says} of all files below a folder, asked for once. Raises UsageError, RunError."""
        for known, files in self._listed.items():
            if folder == known or folder.startswith(known + "/"):
                return files
        with explaining(self.url):
            found = self.store.find(folder, detail=True)
            if not found:
                try:
                    self.store.ls(folder)  # a bucket that is not there is listed as empty
                except FileNotFoundError as error:
                    if lacks_bucket(error):
                        raise
        self._listed[folder] = found
        return self._listed[folder]

    def glob(self, path: str, maxdepth: int | None = None, **options: Any) -> Any:
        """Files that fit, sorted; a `*` stays in its folder."""
        pattern = self._strip_protocol(path).split("/")
        plain = [re.sub(r"\[(.)\]", r"\1", part) for part in pattern]  # what glob.escape wrote
        magic = [any(c in re.sub(r"\[(.)\]", "", part) for c in "*?[") for part in pattern]
        first = magic.index(True) if True in magic else len(pattern) - 1
        found = []
        for one in self.listing("/".join(plain[:first])):
            parts = one.split("/")
            if len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern)):
                found.append(one)
        return {one: self.info(one) for one in sorted(found)} if options.get("detail") else sorted(found)

    def info(self, path: str, **options: Any) -> Any:
        path = self._strip_protocol(path)
        for files in self._listed.values():
            if path in files:
                return files[path]
        with explaining(self.url):
            return self.store.info(path)

    def modified(self, path: str) -> datetime:
        info = self.info(path)
        told = [info[name] for name in ("LastModified", "last_modified", "created") if info.get(name) is not None]
        return told[0] if told and isinstance(told[0], datetime) else datetime.fromtimestamp(0, UTC)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        with explaining(self.url):
            return self.store.ls(path, detail=detail)

    def isdir(self, path: str) -> bool:
        with explaining(self.url):
            return bool(self.store.isdir(path))

    def fetch(self, paths: Sequence[str]) -> None:
        """Have these files here, many of them under way at once."""
        missing = [path for path in paths if self.cache.find(self._key(path)) is None]
        for start in range(0, len(missing), AT_ONCE):
            part = missing[start : start + AT_ONCE]
            with explaining(self.url):
                sizes = [self.info(path)["size"] for path in part]
                contents = self.store.cat_ranges(part, [0] * len(part), sizes, on_error="raise")
                for path, content in zip(part, contents, strict=True):
                    self.cache.put(self._key(path), content)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode not in ("rb", "r"):
            raise PermissionError(f"{path}: read only")
        path = self._strip_protocol(path)
        with explaining(self.url):
            size = self.info(path)["size"]
            content = self.cache.get(self._key(path), lambda: self.store.cat_file(path, start=0, end=size))
            return io.BytesIO(content)

    def _key(self, path: str) -> str:
        return f"{self.unstrip_protocol(path)} {version_of(self.info(path))}"


@dataclass(frozen=True, order=True)
class Copied(RemotePath):
    """An object as its store was listed, read from this machine."""

    mirror: Mirror = field(compare=False)

    def read_bytes(self) -> bytes:
        with self.mirror.open(str(self.mirror._strip_protocol(self.url))) as stream:
            return bytes(stream.read())


def files_at_once(folder: AnyPath, pattern: str) -> dict[str, AnyPath]:
    """{name: file} of the shards' files that fit below a folder. A store is listed once, files fetched together."""
    if isinstance(folder, Path):
        return {path.name: path for path in folder.glob(pattern) if is_shard(path)}
    mirror = Mirror(folder.url)
    found = [path for path in mirror.glob(f"{glob.escape(mirror.root)}/{pattern}") if is_shard(path)]
    mirror.fetch(found)
    copies = [Copied(mirror.unstrip_protocol(path), mirror) for path in found]
    return {one.name: one for one in copies}

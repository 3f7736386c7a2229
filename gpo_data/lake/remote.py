"""Where a dataset's files lie: a folder of this machine (`Path`), or an object store behind a URL (`RemotePath`).

    place("lake"), place("~/lake"), place("file:///srv/lake")     a Path
    place("s3://bucket/lake"), gs://, az://, hf://, memory://     a RemotePath, through fsspec

A RemotePath does what the store asks of a Path. What always holds: an object is there whole or not at all (a PUT is
one, and a multipart upload appears at its end); nothing is remembered of what the store said before; `create` writes
what nobody wrote before (`If-None-Match: *` where the store has it). What is not finished is staged on this machine,
under $GPO_SCRATCH. Credentials are the environment's, as the store's own client takes them; a recipe has none.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.exceptions import FSTimeoutError

from gpo_data.errors import RunError, UsageError
from gpo_data.home import user_cache
from gpo_data.lake import silence
from gpo_data.lake.store_errors import explaining, is_taken, is_wordless

# The extra of this package that brings a scheme's client.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
SCHEMES = (*EXTRAS, "hf", "memory", "file", "local", "http", "https")


class Stat(NamedTuple):
    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object, or what has its name as a prefix. `url` has no slash at its end."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, part: str) -> RemotePath:
        return RemotePath(f"{self.url}/{part}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.url.rpartition("/")[0])

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def with_suffix(self, suffix: str) -> RemotePath:
        return self.parent / (self.stem + suffix)

    def is_file(self) -> bool:
        with self._asking() as (store, path):
            try:
                return bool(store.info(path)["type"] == "file")
            except FileNotFoundError:
                return False

    exists = is_file

    def is_dir(self) -> bool:
        with self._asking() as (store, path):
            return bool(store.isdir(path))

    def stat(self) -> Stat:
        """Size, and a number that changes with the content as far as the store tells. Raises FileNotFoundError."""
        with self._asking() as (store, path):
            info = store.info(path)
        told = hashlib.blake2b(version_of(info).encode(), digest_size=7).digest()
        return Stat(info["size"], int.from_bytes(told, "big"))

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Files below whose path, as this folder sees it, fits; a `*` stays in its folder, `**/` is any folders."""
        anywhere, parts = pattern.startswith("**/"), pattern.removeprefix("**/").split("/")
        with self._asking() as (store, path):
            listed = store.find(path)
        for one in sorted(listed):
            here = one.lstrip("/").removeprefix(path.lstrip("/")).strip("/").split("/")
            there = here[-len(parts) :] if anywhere else here
            if len(there) == len(parts) and all(map(fnmatchcase, there, parts)):
                yield self / "/".join(here)

    def read_bytes(self) -> bytes:
        with self._asking() as (store, path):
            content: bytes = store.cat_file(path)
        return content

    def read_range(self, start: int, end: int) -> bytes:
        with self._asking() as (store, path):
            content: bytes = store.cat_file(path, start=start, end=end)
        return content

    def open(self, mode: str = "rb") -> BinaryIO:
        """The whole object, to be read."""
        assert mode == "rb", mode
        return io.BytesIO(self.read_bytes())

    def write_bytes(self, content: bytes) -> None:
        """PUT; what was there is replaced."""
        with self._asking(writing=True) as (store, path):
            _put(store, path, content)

    def create(self, content: bytes) -> bool:
        """PUT unless something is there; whether the object holds this content now.

        A PUT whose answer was lost is sent again and finds the first one: what is there counts, and not who wrote it.
        """
        with self._asking(writing=True) as (store, path):
            try:
                _put(store, path, content, mode="create")
                return True
            except Exception as error:
                if not (is_taken(error) and store.exists(path)):
                    raise
        return self.stat().st_size == len(content) and self.read_bytes() == content

    def unlink(self, missing_ok: bool = False) -> None:
        with self._asking(writing=True) as (store, path):
            try:
                store.rm_file(path)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def replace(self, target: AnyPath) -> None:
        """Not at once, as on a disk: the copy is there first."""
        target.write_bytes(self.read_bytes())
        self.unlink()

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """An object store has no folders."""

    @contextmanager
    def _asking(self, writing: bool = False) -> Iterator[tuple[Any, str]]:
        """The store and the path in it; what it cannot do becomes a UsageError or RunError of one line."""
        with explaining(self.url, writing):
            store, path = open_store(self.url)
            try:
                yield store, path
            except Exception as error:
                if is_wordless(error):
                    store.ls(path.rpartition("/")[0])
                raise


@dataclass(frozen=True, order=True)
class Held(RemotePath):
    """An object that was read, and is not asked for again."""

    content: bytes = field(compare=False, repr=False)

    def read_bytes(self) -> bytes:
        return self.content


AnyPath = Path | RemotePath


def _put(store: fsspec.AbstractFileSystem, path: str, content: bytes, **how: Any) -> None:
    limit = silence.patience(len(content))
    if store.async_impl:
        how["timeout"] = limit
    try:
        store.pipe_file(path, content, **how)
    except FSTimeoutError:
        raise ConnectionError(f"{len(content)} bytes were not written in {limit:.0f} s") from None


def held(path: AnyPath) -> AnyPath:
    """The file, read now where it lies in an object store. Raises RunError."""
    if not isinstance(path, RemotePath):
        return path
    try:
        return Held(path.url, path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None


def files_in(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """The files of a folder that fit, sorted; `**/` before the pattern looks in those below too."""
    paths: list[AnyPath] = [*folder.glob(pattern)]
    return sorted(paths, key=str)


def is_shard(path: str | AnyPath) -> bool:
    """Whether it is called as a shard's tar, sidecar or measures are, and not as a file manager calls a copy of one."""
    name = path.rpartition("/")[2] if isinstance(path, str) else path.name
    return re.fullmatch(r"shard-\d{6,}\.(tar|parquet)", name) is not None


def below(path: AnyPath, folder: AnyPath) -> str:
    """The path as the folder sees it."""
    return str(path).removeprefix(f"{folder}/")


def place(lake: str | Path) -> AnyPath:
    """The folder that `lake:` says, as a path. Raises UsageError."""
    text = str(lake)
    scheme = text.partition("://")[0] if "://" in text else ""
    known, colon, rest = text.partition(":")
    if colon and not scheme and known in SCHEMES:
        meant = rest if known in ("file", "local") else rest.lstrip("/")
        raise UsageError(f"lake: {text}: did you mean {known}://{meant}? A folder of that name is ./{text}")
    if not scheme:
        return Path(text).expanduser()
    if scheme in ("file", "local"):
        rest = unquote(urlsplit(text).path) if scheme == "file" else text.partition("://")[2]
        if (host := urlsplit(text).netloc if scheme == "file" else "") not in ("", "localhost"):
            raise UsageError(f"lake: {text}: a file:// URL has three slashes, file:///{host}...; or give the folder")
        return Path(rest)
    if scheme in ("http", "https"):
        raise UsageError(
            f"lake: {text}: a web server does not list its files; expected a folder or s3://, gs://, az:// or hf://"
        )
    return RemotePath(text.rstrip("/"))


def open_store(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The store behind a URL, and the path in it. Raises UsageError."""
    scheme = url.partition("://")[0]
    try:
        store = _store(scheme)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(scheme) if isinstance(error, ImportError) else None
        told = f"; `pip install 'gpo[{extra}]'`" if extra else ""
        raise UsageError(f"lake: {url}: {error}{told}") from None
    return store, str(store._strip_protocol(url))


@functools.cache
def _store(scheme: str) -> fsspec.AbstractFileSystem:
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it writes a traceback of what it raises as well
    store = fsspec.filesystem(scheme, use_listings_cache=False)
    if scheme in ("s3", "s3a"):
        silence.bound(store)
    return store


def version_of(info: dict[str, Any]) -> str:
    """Of an object, as its store tells what it has: changes with the content."""
    told = ("ETag", "etag", "md5Hash", "blob_id", "lfs", "mtime", "LastModified", "created", "generation", "size")
    return repr([(name, info[name]) for name in told if info.get(name) is not None])


def scratch() -> Path:
    """The folder of this machine for what is on its way to an object store, or was read from one."""
    if chosen := os.environ.get("GPO_SCRATCH"):
        return Path(chosen)
    return user_cache()


def stage_folder(folder: AnyPath) -> Path:
    """Where a dataset's finished groups wait for their shard, and its locks lie."""
    if isinstance(folder, Path):
        return folder / ".stage"
    told = hashlib.blake2b(folder.url.encode(), digest_size=8).hexdigest()
    return scratch() / "stage" / f"{re.sub('[^A-Za-z0-9=_-]+', '-', folder.url)[-80:]}-{told}"

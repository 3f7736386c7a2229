"""Files that are there whole or not at all: a temporary name in the folder, flush, fsync, rename, fsync of the folder.

On an object store a file is one PUT, and `write_once` one that refuses to replace what another writer has put there;
on a disk that writer is kept away by a lock (locks.py).

A temporary is `<name>.<host>-<pid>.tmp`; what a process that is gone has left, the next writer of that file removes.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gpo_data.errors import RunError, UsageError
from gpo_data.lake.remote import AnyPath, RemotePath

TEMPORARY = ".tmp"
HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname()) or "host"


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `target`, whole or not at all."""
    clear_stale(target)
    temporary = target.with_name(f"{target.name}.{HOST}-{os.getpid()}{TEMPORARY}")
    shutil.rmtree(temporary, ignore_errors=True)  # of an earlier process of this number
    temporary.mkdir()
    try:
        yield (made := temporary / target.name)
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomic(path: AnyPath, *chunks: bytes) -> None:
    """A full disk leaves the old file or none. Raises RunError."""
    if isinstance(path, RemotePath):
        path.write_bytes(b"".join(chunks))
        return
    write_stream(path, lambda stream: stream.writelines(chunks))


def write_once(path: AnyPath, *chunks: bytes) -> bool:
    """`write_atomic` of a file that one writer makes; False where another one made another one. Raises RunError."""
    if isinstance(path, RemotePath):
        return path.create(b"".join(chunks))
    write_atomic(path, *chunks)
    return True


def expect_new(folder: AnyPath) -> None:
    """Raise UsageError where a dataset cannot begin: a tar there that nobody has committed may be any dataset's.

    On a disk it is written over.
    """
    if isinstance(folder, RemotePath) and (left := next(folder.glob("shard-*.tar"), None)):
        raise UsageError(
            f"{folder}: no dataset.json here, but {left.name}, of a dataset that was here before: restore its "
            f"dataset.json, remove its files, or draw under another --name"
        )


def write_stream(path: Path, fill: Callable[[BinaryIO], Path | None]) -> None:
    """`write_atomic` of what `fill` writes; it may say another path, which depends on that. Raises RunError."""
    temporary = path.with_name(f"{path.name}.{HOST}-{os.getpid()}{TEMPORARY}")
    try:
        clear_stale(path)
        with temporary.open("wb") as stream:
            final = fill(stream) or path
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(final)
        fsync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # the file system may take nothing any more; the name says that it is no data
            temporary.unlink(missing_ok=True)
        raise RunError(
            f"{path}: cannot write: {error.strerror}; the lake is valid as it is; free space or fix the folder "
            f"and run the same command again, it goes on where it stopped"
        ) from error


def fsync_folder(folder: AnyPath) -> None:
    if isinstance(folder, RemotePath):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_there(path: AnyPath) -> bool:
    """Also where it is a link to nothing."""
    return path.is_file() if isinstance(path, RemotePath) else os.path.lexists(path)


def move(path: AnyPath, target: AnyPath) -> None:
    """To another name of the same lake."""
    if isinstance(path, RemotePath):
        path.replace(target)
    else:
        path.replace(str(target))


def clear_stale(path: AnyPath) -> None:
    """Remove temporaries of the file or folder that processes of this machine, which are gone, have left."""
    if isinstance(path, RemotePath):
        return
    for temporary in path.parent.glob(f"{glob.escape(path.name)}.*{TEMPORARY}"):
        if not is_stale(temporary):
            continue
        if not temporary.is_dir():
            temporary.unlink(missing_ok=True)
        elif re.search(r"\.\w+-\d+\.tmp$", temporary.name):  # ours, and no folder of somebody's
            shutil.rmtree(temporary)


def is_stale(temporary: AnyPath) -> bool:
    """Whether the process in a temporary's name is one of this machine and gone."""
    host, _, pid = temporary.name.split(".")[-2].rpartition("-")
    if host not in ("", HOST):  # 0.1 wrote the pid alone
        return False
    try:
        os.kill(int(pid), 0)
        return False
    except (ValueError, OverflowError, ProcessLookupError):
        return True
    except PermissionError:
        return False

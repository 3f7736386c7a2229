"""Files that are there whole or not at all: a temporary name in the folder, flush, fsync, rename, fsync of the folder.

A temporary is `<name>.<host>-<pid>.tmp`; what a process that is gone has left, the next writer of that file removes.
"""

from __future__ import annotations

import glob
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from gpo_data.errors import RunError

TEMPORARY = ".tmp"
HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname()) or "host"


def write_atomic(path: Path, *chunks: bytes) -> None:
    """A full disk leaves the old file or none. Raises RunError."""
    write_stream(path, lambda stream: stream.writelines(chunks))


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


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_stale(path: Path) -> None:
    """Remove temporaries of the file that processes of this machine, which are gone, have left."""
    for temporary in path.parent.glob(f"{glob.escape(path.name)}.*{TEMPORARY}"):
        if is_stale(temporary):
            temporary.unlink(missing_ok=True)


def is_stale(temporary: Path) -> bool:
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

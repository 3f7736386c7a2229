"""Locks of a dataset: `.stage/<name>.lock`, held by one process; the kernel frees them on a kill.

They keep apart the processes of one machine, or of one file system. Machines that draw into one object store find each
other at the commit, which the first one makes (durable.write_once)."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from gpo_data.errors import RunError
from gpo_data.lake.remote import AnyPath, stage_folder


def claim(folder: AnyPath, shard_id: int) -> AbstractContextManager[bool]:
    """Hold a shard for this process: gives False where another process draws, measures or repairs it."""
    return held(stage_folder(folder) / f"shard-{shard_id:06d}.lock")


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock `path`: yields False where another process has it, or waits. Raises RunError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    except OSError as error:
        raise RunError(
            f"{path}: cannot make the lock: {error.strerror}; make the folder one that can be written"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
        except BlockingIOError:
            mine = False
        except OSError as error:
            raise RunError(
                f"{path}: cannot lock: {error.strerror}; a lake is drawn where the file system has locks: draw on a "
                f"local disk and copy the folder"
            ) from None
        yield mine

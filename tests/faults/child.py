"""A command in a process of its own that is killed, or whose disk fails: at a random moment, or at its n-th change of
the file system.

The process is forked from one that has imported everything, so that a try costs what the command does and no more.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLS = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync")
EVERY = 200  # torch writes a checkpoint in hundreds of pieces
FREEING = ("unlink", "rmdir", "replace", "rename")  # what a full disk still does


@dataclass(frozen=True)
class Fault:
    """What happens at change number `at` of the file system; 0: nothing, only count.

    `error`: None is a SIGKILL before it; EIO is raised by it alone; ENOSPC by it and all later ones that need space.
    A kill counts the calls alone, an error the writes to an open file too: its first, and every EVERY-th after it.
    """

    at: int
    error: int | None = None


@dataclass(frozen=True)
class Ended:
    """`code`: of the command, None where it was killed. `calls`: changes of the file system, if counted."""

    code: int | None
    seconds: float
    output: str
    calls: int = 0


def run(command: Callable[[], int], log: Path, after: float | None = None, fault: Fault | None = None) -> Ended:
    """Run `command`; SIGKILL it `after` seconds, or have `fault` happen."""
    started = time.monotonic()
    counted = log.with_suffix(".calls")
    counted.unlink(missing_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _child(command, log, counted, fault)
    code = _wait(pid, after)
    calls = int(counted.read_text()) if counted.is_file() else 0
    return Ended(code, time.monotonic() - started, log.read_text(errors="replace") if log.is_file() else "", calls)


def _wait(pid: int, after: float | None) -> int | None:
    until = None if after is None else time.monotonic() + after
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        if until is not None and time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


def _child(command: Callable[[], int], log: Path, counted: Path, fault: Fault | None) -> None:
    code, plain = 70, builtins.open
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        changes = _Changes(fault) if fault is not None else None
        code = command()
        if changes is not None and changes.fault.at == 0:
            with plain(counted, "w") as stream:
                stream.write(str(changes.number))
    except SystemExit as error:
        code = int(error.code or 0) if not isinstance(error.code, str) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Changes:
    """Counts calls that change the file system, and lets the fault happen."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.number = fault, 0
        for name in CALLS:
            setattr(os, name, self.counting(name, getattr(os, name)))
        plain = builtins.open

        def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+"):
                return plain(file, mode, *rest, **named)
            stream = self.counting("open", plain)(file, mode, *rest, **named)
            return stream if fault.error is None else _Written(stream, self)

        io.open = builtins.open = opened  # type: ignore[assignment]

    def counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.count(name)
            return function(*arguments, **named)

        return counted

    def count(self, name: str) -> None:
        self.number += 1
        at, error = self.fault.at, self.fault.error
        if self.number == at and error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        full = error == errno.ENOSPC and 0 < at < self.number and name not in FREEING
        if error is not None and (self.number == at or full):
            raise OSError(error, os.strerror(error))


class _Written:
    """A file that is being written, each of whose writes counts."""

    def __init__(self, stream: Any, changes: _Changes) -> None:
        self._stream, self._changes, self._writes = stream, changes, 0

    def write(self, data: Any) -> Any:
        self._count()
        return self._stream.write(data)

    def writelines(self, lines: Any) -> None:
        self._count()
        self._stream.writelines(lines)

    def _count(self) -> None:
        if self._writes % EVERY == 0:
            self._changes.count("write")
        self._writes += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stream.close()

    def __iter__(self) -> Any:
        return iter(self._stream)

"""A command in a process of its own that is killed: at a random moment, or at its n-th change of the file system.

The process is forked from one that has imported everything, so that a try costs what the command does and no more.
"""

from __future__ import annotations

import builtins
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


@dataclass(frozen=True)
class Ended:
    """`code`: of the command, None where it was killed. `calls`: changes of the file system, if counted."""

    code: int | None
    seconds: float
    output: str
    calls: int = 0


def run(command: Callable[[], int], log: Path, after: float | None = None, at_call: int | None = None) -> Ended:
    """Run `command`; SIGKILL it `after` seconds, or before its change number `at_call` (0: only count)."""
    started = time.monotonic()
    counted = log.with_suffix(".calls")
    counted.unlink(missing_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _child(command, log, counted, at_call)
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


def _child(command: Callable[[], int], log: Path, counted: Path, at_call: int | None) -> None:
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        calls = _count(at_call) if at_call is not None else [0]
        code = command()
        if at_call == 0:
            counted.write_text(str(calls[0]))
    except SystemExit as error:
        code = int(error.code or 0) if not isinstance(error.code, str) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _count(at: int) -> list[int]:
    """Count calls that change the file system, and die before number `at`."""
    calls = [0]

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return counted

    for name in CALLS:
        setattr(os, name, counting(getattr(os, name)))
    plain = builtins.open

    def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        return (counting(plain) if set(mode) & set("wax+") else plain)(file, mode, *rest, **named)

    io.open = builtins.open = opened  # type: ignore[assignment]
    return calls

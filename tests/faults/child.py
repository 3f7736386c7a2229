"""A command in a process of its own that is killed, or whose disk fails: at a random moment, or at its n-th change of
the file system.

The process is forked from one that has imported everything, so that a try costs what the command does and no more.
Two ranks are two such processes, as torchrun starts them, that find each other by gloo on loopback. One is killed alone
when they have met: before that it is the launcher, torchrun or Lightning, that ends the other.
"""

from __future__ import annotations

import builtins
import errno
import io
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from tests.parts.serving import free_port

CALLS = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync")
EVERY = 200  # torch writes a checkpoint in hundreds of pieces
WITHIN = 120  # seconds until a rank ends that has lost the other
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
    """`code`: of the command (of its worst rank), None where it was killed. `calls`: changes of the file system, if
    counted.

    `alone`: where one rank was killed, what the other ended with; HUNG if it did not.
    """

    code: int | None
    seconds: float
    output: str
    calls: int = 0
    alone: int | None = None


HUNG = 124


def run(
    command: Callable[[], int],
    log: Path,
    after: float | None = None,
    fault: Fault | None = None,
    ranks: int = 1,
    victim: int | None = None,
) -> Ended:
    """Run `command`; SIGKILL it, or its rank `victim` alone, `after` seconds, or have `fault` happen."""
    started = time.monotonic()
    counted = log.with_suffix(".calls")
    counted.unlink(missing_ok=True)
    logs = [log.with_name(f"{log.stem}-{rank}.txt") if rank else log for rank in range(ranks)]
    sys.stdout.flush()
    environments = _environments(ranks)
    met = [log.with_name(f"met-{rank}") for rank in range(ranks)]
    for path in met:
        path.unlink(missing_ok=True)
    pids: list[int] = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            os.environ |= environments[rank]
            _meeting(rank, met[rank])
            _child(command, logs[rank], counted, fault if rank == 0 else None)
        pids.append(pid)
    codes = _wait(pids, after, victim, met if victim is not None else [])
    calls = int(counted.read_text()) if counted.is_file() else 0
    output = "".join(path.read_text(errors="replace") for path in logs if path.is_file())
    code = None if None in codes else max(code for code in codes if code is not None)
    alone = next((code for code in codes if code is not None), None) if code is None else None
    return Ended(HUNG if HUNG in codes else code, time.monotonic() - started, output, calls, alone)


def _environments(ranks: int) -> list[dict[str, str]]:
    if ranks == 1:
        return [{}]
    port = str(free_port())
    shared = {"WORLD_SIZE": str(ranks), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [shared | {"LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"} for rank in range(ranks)]


def _meeting(rank: int, met: Path) -> None:
    """Have this process be the rank, and make the file `met` when it is connected to the others."""
    rank_zero_only.rank = rank  # read from the environment when it was imported
    join = torch.distributed.init_process_group

    def joined(*arguments: Any, **named: Any) -> None:
        join(*arguments, **named)
        met.touch()

    torch.distributed.init_process_group = joined


def _wait(pids: list[int], after: float | None, victim: int | None, met: list[Path]) -> list[int | None]:
    """The code of each; None: killed as was wanted; HUNG: killed since it did not end when the other had.

    No kill before the files `met` are there.
    """
    codes: dict[int, int | None] = {}
    kill_at, give_up = math.inf if after is None else time.monotonic() + after, math.inf
    while len(codes) < len(pids):
        for rank, pid in enumerate(pids):
            found, status = os.waitpid(pid, os.WNOHANG) if rank not in codes else (0, 0)
            if found:
                code = os.waitstatus_to_exitcode(status)
                codes[rank] = None if code == -signal.SIGKILL else abs(code)
        now = time.monotonic()
        if now > kill_at and all(path.exists() for path in met):
            kill_at = math.inf
            _kill([pid for rank, pid in enumerate(pids) if rank not in codes and victim in (None, rank)])
        elif codes and give_up == math.inf:
            give_up = now + WITHIN
        elif now > give_up and len(codes) < len(pids):
            left = [rank for rank in range(len(pids)) if rank not in codes]
            _kill([pids[rank] for rank in left])
            for rank in left:
                os.waitpid(pids[rank], 0)
                codes[rank] = HUNG
        time.sleep(0.002)
    return [codes[rank] for rank in range(len(pids))]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


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

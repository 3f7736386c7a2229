"""Work in processes of this machine, so many at once, each with its share of the threads and its words in a file.

What always holds: a process that dies takes no other with it; Ctrl-C or SIGTERM asks those at work to stop and waits
for them, so that each leaves its checkpoint; when this process is killed, they end too. Nothing here knows what the
work is: another engine (ray.py, a cluster's queue) takes the place of `run_all`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gpo_data import hardware
from gpo_data.lifeline import end_with_parent
from gpo_data.signals import answer, same_signals

STOPPED, FAILED = 130, 1


@dataclass(frozen=True)
class Job:
    """Args: name: for people. work: a function of a module, with arguments that can be pickled; its exit code."""

    name: str
    work: Callable[..., int]
    arguments: tuple[Any, ...]
    log: Path


Runner = Callable[[list[Job], int, Callable[[Job, int], None]], None]


def run_all(jobs: list[Job], at_once: int, ended: Callable[[Job, int], None]) -> None:
    """Run them in order. `ended` is told each job's exit code, as it ends. Raises KeyboardInterrupt when stopped."""
    waiting, running = list(jobs), dict[BaseProcess, Job]()
    with _threads_of(min(at_once, max(1, len(jobs)))), stop_signals() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    job.log.parent.mkdir(parents=True, exist_ok=True)
                    spawn: Any = multiprocessing.get_context("spawn")
                    process = spawn.Process(target=_child, args=(job.work, job.arguments, job.log), name=job.name)
                    process.start()
                    running[process] = job
                wait([process.sentinel for process in running], timeout=0.5)
                if stop:
                    raise KeyboardInterrupt
                for process in [one for one in running if one.exitcode is not None]:
                    ended(running.pop(process), process.exitcode or 0)
        finally:
            for process in running:
                if process.pid and process.exitcode is None:
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGTERM)
            for process in running:
                process.join()


def _child(work: Callable[..., int], arguments: tuple[Any, ...], log: Path) -> None:
    end_with_parent()
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    sys.exit(work(*arguments))


@contextmanager
def _threads_of(at_once: int) -> Iterator[None]:
    """OMP_NUM_THREADS of the processes that start inside; the user's own word stands."""
    before = os.environ.get("OMP_NUM_THREADS")
    if before is None:
        os.environ["OMP_NUM_THREADS"] = str(hardware.threads(at_once))
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that has something in it once Ctrl-C or SIGTERM came, or the terminal went."""
    came: list[int] = []
    with same_signals():
        answer(lambda number, frame: came.append(number))
        yield came

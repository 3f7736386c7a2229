"""A Ray to work on: one of this command's own, or a cluster that is there.

    /tmp/gpo-ray-*/         the files of a Ray of a command's own
        driver.lock         held by that command

What always holds: a Ray of its own ends with its command, and so does its folder; that of a command that was killed is
removed by the next one. (Workers end with it at once. Ray's own two agents, which hold no GPU, take a minute: they try
to tell what has ended why they go.)
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from gpo_data.errors import RunError, UsageError
from gpo_data.lake.locks import held

LONGEST_FOLDER = 40  # characters; the path of a socket below it has at most 107
LOCK = "driver.lock"
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def own(cores: int) -> Iterator[None]:
    """A Ray of this process's own, without dashboard and statistics. Raises RunError."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # not 15: these processes are the command
    with ExitStack() as stack:
        folder = _folder(stack)
        stack.callback(ray.shutdown)
        try:
            with _quietly():
                ray.init(address="local", num_cpus=cores, include_dashboard=False, _temp_dir=folder, **QUIET)
        except (RuntimeError, OSError, TimeoutError) as error:
            raise RunError(f"ray: it does not start here: {' '.join(str(error).split())[:300]}") from None
        yield


def _folder(stack: ExitStack) -> str:
    """A new folder, until the stack is closed. Those of commands that were killed go."""
    parent = tempfile.gettempdir() if len(tempfile.gettempdir()) <= LONGEST_FOLDER else "/tmp"
    for lock in Path(parent).glob(f"gpo-ray-*/{LOCK}"):
        with suppress(OSError, RunError), held(lock) as free:  # another user's
            if free:
                shutil.rmtree(lock.parent, ignore_errors=True)
    while True:
        folder = tempfile.mkdtemp(prefix="gpo-ray-", dir=parent)
        if stack.enter_context(held(Path(folder) / LOCK)):  # else a process that clears was quicker
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            return folder


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Connected to a cluster. Raises UsageError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:  # Ray itself would try for half a minute
            socket.create_connection((host, int(port)), 5).close()
        with _quietly():
            ray.init(address=address, **QUIET)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"ray.address: no Ray at {address} ({reason}); start one with `ray start --head` and `ray start "
            f"--address HOST:6379` on the other machines, or leave --ray out for one on this machine"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quietly() -> Iterator[None]:
    """Ray says nothing, tells nobody, and leaves SIGTERM to its caller."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of all workers but the first that failed
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)

"""Worker processes, and ranks that Lightning starts, end with the process that made them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def end_with_parent(*worker: object) -> None:
    """Called in a worker: as a pool's initializer, or a DataLoader's `worker_init_fn`.

    A parent that was killed cannot end its processes, which would keep their models in memory for ever. SIGUSR1, which
    SLURM sends to all of a job at once, is for the parent to answer.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    # Not PR_SET_PDEATHSIG: it fires when the thread ends that started the process, which is not the parent's main one.
    # Nor os.getppid: under `forkserver` that is the server, which lives as long as its workers do.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


LAUNCHER = "GPO_LAUNCHER"  # the process that starts the other ranks


@contextmanager
def end_with_launcher(grace: float = 10) -> Iterator[None]:
    """Around a training, in every rank before there is a Trainer.

    A rank waits half an hour for one that was killed before they have met. One that hears of it by itself has `grace`
    seconds to say so. Ranks that torchrun or a person starts are not ours to end, also where this process starts them
    later, as a notebook does: what Lightning's ranks know the launcher by goes with the training.
    """
    if "LOCAL_RANK" not in os.environ:  # Lightning will start the others
        os.environ[LAUNCHER] = str(os.getpid())
        try:
            yield
        finally:
            os.environ.pop(LAUNCHER, None)
        return
    if os.environ.get(LAUNCHER, str(os.getpid())) != str(os.getpid()):
        threading.Thread(target=_watch, args=(int(os.environ[LAUNCHER]), grace), daemon=True).start()
    yield


def _watch(launcher: int, grace: float) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    time.sleep(grace)
    with suppress(OSError):
        print(f"process {launcher}, which started this rank, has ended, so this one does", file=sys.stderr, flush=True)
    os._exit(1)

"""Worker processes, and ranks that Lightning starts, end with the process that made them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time


def end_with_parent(*worker: object) -> None:
    """Called in a worker: as a pool's initializer, or a DataLoader's `worker_init_fn`.

    A parent that was killed cannot end its processes, which would keep their models in memory for ever.
    """
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    # Not PR_SET_PDEATHSIG: it fires when the thread ends that started the process, which is not the parent's main one.
    # Nor os.getppid: under `forkserver` that is the server, which lives as long as its workers do.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


LAUNCHER = "GPO_LAUNCHER"  # the process that starts the other ranks


def end_with_launcher(grace: float = 10) -> None:
    """Called in every rank before there is a Trainer. Ranks that torchrun or a person starts are not ours to end.

    A rank waits half an hour for one that was killed before they have met. One that hears of it by itself has `grace`
    seconds to say so.
    """
    if "LOCAL_RANK" not in os.environ:  # Lightning will start the others
        os.environ[LAUNCHER] = str(os.getpid())
    elif os.environ.get(LAUNCHER, str(os.getpid())) != str(os.getpid()):
        threading.Thread(target=_watch, args=(int(os.environ[LAUNCHER]), grace), daemon=True).start()


def _watch(launcher: int, grace: float) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    time.sleep(grace)
    os._exit(1)

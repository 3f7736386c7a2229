"""Worker processes end with the process that made them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import threading


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

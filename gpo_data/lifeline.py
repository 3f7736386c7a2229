"""Worker processes end with the process that made them, however that ends.

A pipe is held open by the one who made it; in a worker a thread waits for its end. A worker's own parent says nothing:
under `forkserver` that is the server, which lives as long as its workers do.
"""

from __future__ import annotations

import os
import threading
from multiprocessing import Pipe
from typing import Any


class Lifeline:
    """Called in a worker (as a DataLoader's `worker_init_fn`, or a pool's initializer), it ties it to its maker."""

    def __init__(self) -> None:
        self._end, self._held = Pipe(duplex=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"_end": self._end}  # what is held stays with the maker

    def __call__(self, *worker: object) -> None:
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        try:
            self._end.recv()
        except (EOFError, OSError):
            os._exit(1)

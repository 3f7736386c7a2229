"""Run a model over pictures, in this process or in several.

    Pool(load, settings, workers, batch_size)([(image, target), ...]) -> [measurement, ...]

`load(settings, threads)` returns a function over a batch; it is called once in each process, at the first picture.
Processes are spawned, never forked: the parent has threads and perhaps CUDA.

What always holds: the order is kept; an error of `load` or of a batch is raised to the caller as it was; a process
that dies (out of memory, a crash in native code) costs its call, and the next call gets new processes; the processes
end with their parent, also where that is killed.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from gpo_data import hardware
from gpo_data.lifeline import end_with_parent

Batch = list[tuple[Any, dict[str, Any]]]
Measure = Callable[[Batch], list[dict[str, Any]]]


class Pool:
    """Args:
    load: a function of a module (it is pickled): (settings, threads) -> Measure.
    settings: its first argument.
    workers: processes; 0 measures in the calling thread.
    batch_size: pictures at once, at most.
    threads: of a model in the calling thread; None: all that the process may use.
    """

    def __init__(
        self,
        load: Callable[[Any, int], Measure],
        settings: Any,
        workers: int,
        batch_size: int,
        threads: int | None = None,
    ) -> None:
        self.load, self.settings, self.workers, self.batch_size = load, settings, workers, max(1, batch_size)
        self.threads = threads
        self._lock = threading.Lock()
        self._measure: Measure | None = None
        self._processes: ProcessPoolExecutor | None = None

    def __call__(self, pictures: Batch) -> list[dict[str, Any]]:
        if not pictures:
            return []
        # a group of 32 with a batch of 32 would keep all processes but one idle
        size = min(self.batch_size, -(-len(pictures) // max(1, self.workers)))
        batches = [pictures[i : i + size] for i in range(0, len(pictures), size)]
        with self._lock:
            if self.workers == 0:
                if self._measure is None:
                    self._measure = self.load(self.settings, self.threads or hardware.threads())
                return [row for batch in batches for row in self._measure(batch)]
            return [row for rows in self._map(batches) for row in rows]

    def close(self) -> None:
        """End the processes; the next call starts new ones."""
        if self._processes is not None:
            self._processes.shutdown(wait=True, cancel_futures=True)
            self._processes = None

    def _map(self, batches: list[Batch]) -> list[list[dict[str, Any]]]:
        if self._processes is None:
            self._processes = ProcessPoolExecutor(
                self.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(self.load, self.settings),
            )
            # Without it the pool is collected while the interpreter is half gone, which prints a traceback.
            weakref.finalize(self, self._processes.shutdown)
        try:
            return list(self._processes.map(_run, batches))
        except BrokenProcessPool:
            self.close()
            raise RuntimeError("a process that measures pictures died; fewer workers need less memory") from None


_loaded: Measure | Exception | None = None


def _start(load: Callable[[Any, int], Measure], settings: Any) -> None:
    global _loaded
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group of processes; the parent decides
    try:
        _loaded = load(settings, 1)
    except Exception as error:  # raised by _run: an initializer's own error would only say that the pool is broken
        _loaded = error


def _run(batch: Batch) -> list[dict[str, Any]]:
    assert _loaded is not None
    if isinstance(_loaded, Exception):
        raise _loaded
    return _loaded(batch)

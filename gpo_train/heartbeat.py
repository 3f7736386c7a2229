"""Ranks on several machines say that they are alive: of one that loses power nobody hears anything, not even its end.

Collectives wait for torch's own timeout (30 minutes with gloo, 10 with NCCL), and cannot be ended but with their
process. So each rank writes a number to torch's store every few seconds, from a thread, and reads the others'. One that
has heard of another, and then nothing new for SILENCE seconds, says so and ends its process; so it does where the store
itself, which is on the first rank's machine, does not answer.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from rich.console import Console

EVERY = 5.0  # seconds
SILENCE = 40.0
ENDED = b"ended"


class Heartbeat(Callback):
    """Runs from the moment that the ranks have found each other until training ends."""

    def __init__(self, checkpoints: Path, console: Console) -> None:
        self.checkpoints, self.console = checkpoints, console
        self._end = threading.Event()
        self._beating: threading.Thread | None = None
        self._heard: dict[int, tuple[bytes, float]] = {}  # what each other rank said last, and when that was new

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.world_size > 1:
            rank, now = trainer.global_rank, time.monotonic()
            self._heard = {other: (b"", now) for other in range(trainer.world_size) if other != rank}
            self._beating = threading.Thread(target=self._beat, args=[rank], name="heartbeat", daemon=True)
            self._beating.start()
            threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        """Returns when the others can know it: this process may end before the first rank has written all."""
        self._end.set()
        if self._beating is not None:
            self._beating.join(timeout=2 * EVERY)

    def _beat(self, rank: int) -> None:
        """May be kept waiting by a store that does not answer."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])  # of torch's env://
        connect = partial(cast(Any, dist).TCPStore, host, port, wait_for_workers=False)
        store, number, ending = None, 0, False
        while not ending:
            ending = self._end.wait(EVERY if number else 0)
            number += 1
            try:
                store = store or connect(timeout=timedelta(seconds=EVERY))
                store.set(_key(rank), ENDED if ending else f"{number} {socket.gethostname()}")
                for other, (before, _) in self._heard.items():
                    if store.check([_key(other)]) and (said := store.get(_key(other))) != before:
                        self._heard[other] = said, time.monotonic()
            except RuntimeError:  # of a store that is gone: nothing new is heard
                store = None

    def _watch(self) -> None:
        while not self._end.wait(EVERY):
            for rank, (said, at) in self._heard.items():
                # Of one that was never heard of, a network may be to blame that lets the ranks themselves through.
                if said not in (b"", ENDED) and time.monotonic() - at > SILENCE:
                    self._give_up(rank, said.partition(b" ")[2].decode())

    def _give_up(self, rank: int, host: str) -> None:
        self.console.print(
            f"nothing new of rank {rank} ({host}) for {SILENCE:g} s: it is gone or stands still, so this rank ends. "
            f"The same command on all nodes goes on from the last checkpoint in {self.checkpoints}",
            soft_wrap=True,
        )
        os._exit(1)  # the main thread may be in a collective that does not end


def _key(rank: int) -> str:
    return f"gpo/heartbeat/{rank}"

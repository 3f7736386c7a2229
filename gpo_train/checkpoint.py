"""Checkpoints: where a run is, in files that are whole or not there, and how it stops.

    runs/<run>/checkpoints/step-00000037.<16 hex digits of blake2b of the file>.ckpt       the newest two

A checkpoint says which step of which epoch comes next (data.Position): the last step of epoch e makes it (e + 1, 0).
What always holds: a file whose bytes are not those of its name is not read, and the one before it takes its place;
going on from an older one is the same run, because nothing but the checkpoint and files checked like it says what is
trained on. They are written every `checkpoint_steps`, after an epoch's last step, and when a signal asks to stop.
"""

from __future__ import annotations

import hashlib
import signal
import socket
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from gpo_data.errors import Interrupted, RunError
from gpo_data.lake.durable import TEMPORARY
from gpo_data.signals import answer
from gpo_train.data import GroupDataModule
from gpo_train.lightning_fixes import DIGEST, begin_at
from gpo_train.run import Run

KEPT = 2


class Checkpoints(Callback):
    """Writes them. The first Ctrl-C or SIGTERM ends the step in flight and then the run.

    `seconds`: of training, with what it reads or draws: from the first look at its groups on.
    """

    def __init__(self, folder: Path, every: int, data: GroupDataModule) -> None:
        self.folder, self.every, self.data = folder, every, data
        self.stopped, self.seconds, self._started = False, 0.0, 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._started = time.monotonic()  # before the first iteration is drawn: the others are within training too

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def handle(number: int, frame: object) -> None:
            self.stopped = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        answer(handle)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        self.seconds += time.monotonic() - self._started
        self._started = time.monotonic()
        self.data.step_done()
        stopped = trainer.strategy.reduce_boolean_decision(self.stopped, all=False)  # a signal may reach one rank alone
        if stopped or self.data.position.step == 0 or trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:08d}", weights_only=False)
            if trainer.is_global_zero:
                self._keep_newest()
        if stopped:
            raise Interrupted

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        begin_at(checkpoint, self.data.position.epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = state["seconds"]

    def _keep_newest(self) -> None:
        newest, *others = _files(self.folder)
        before = [path for path in others if _step(path) < _step(newest)]
        for path in {*others, *self.folder.glob(f"*{TEMPORARY}")} - {*before[: KEPT - 1]}:
            path.unlink(missing_ok=True)


class SamePlace(Callback):
    """Ends all ranks, as soon as they have met, unless they see one run and go on from one checkpoint of it.

    Their steps would be different ones, and each would wait for ever for what the others do not do.
    """

    def __init__(self, run: Run, resume: Path | None) -> None:
        self.run, self.resume = run, resume

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        name = self.resume.name if self.resume else "no checkpoint"
        place = f"{name} of a run begun at {self.run.manifest().created}"
        seen: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(seen, (place, socket.gethostname()))
        first, host = seen[0]
        for rank, (found, there) in enumerate(seen):
            if found != first:
                raise RunError(
                    f"rank {rank} ({there}) sees other checkpoints than rank 0 ({host}): expected "
                    f"{self.run.folder.parent}/ to be one folder for all nodes, found {first} on rank 0 and {found} on "
                    f"rank {rank}; put it on a file system that they share (--runs FOLDER)"
                )


def newest(folder: Path, console: Console) -> Path | None:
    """The newest whole checkpoint; says which ones are damaged. None: the run begins at its beginning."""
    for path in _files(folder):
        if _digest(path) == path.suffixes[-2][1:]:
            return path
        console.print(
            f"checkpoint {path} is damaged: its bytes are not those of its name; it is left out", soft_wrap=True
        )
    return None


def _files(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-*.*.ckpt"), key=lambda path: (_step(path), path.stat().st_mtime_ns), reverse=True)


def _step(path: Path) -> int:
    return int(path.name.split(".")[0].removeprefix("step-"))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=DIGEST)).hexdigest()

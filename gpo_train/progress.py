"""Progress of training: Lightning's bar on a terminal, a line every few seconds in a log. Both say what is left.

What is left of the whole run: the steps left, at the seconds a step that this process has seen, and the epochs left, at
its seconds before an epoch's first step, where an online run draws. Of rules that stop a run earlier it knows nothing.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from rich.console import Console

from gpo_data.progress import EVERY
from gpo_train.data import GroupDataModule


def progress(console: Console) -> ProgressBar:
    """What suits where `console` writes."""
    return TrainBar() if console.is_terminal else TrainLog(console)


class _Left(ProgressBar):
    """Adds `left`, h:mm:ss until the last epoch ends, to the metrics shown."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark, self._preparing, self._stepping = time.monotonic(), 0.0, 0.0
        self._steps, self._epochs, self._epoch, self._before = 0, 0, -1, 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch != self._epoch:  # what went before its first step: drawing, the reference's errors
            now = time.monotonic()
            self._preparing, self._mark = self._preparing + now - self._mark, now
            self._epochs, self._epoch = self._epochs + 1, trainer.current_epoch
            self._before = trainer.global_step - self._data.position.step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        now = time.monotonic()
        self._stepping, self._mark, self._steps = self._stepping + now - self._mark, now, self._steps + 1
        super().on_train_batch_end(trainer, pl_module, *rest)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        steps = max(0, self.total_steps() - trainer.global_step)
        epochs = max(0, (trainer.max_epochs or -1) - trainer.current_epoch - 1)
        left = steps * self._stepping / max(self._steps, 1) + epochs * self._preparing / max(self._epochs, 1)
        shown = {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}
        return shown | {"left": str(timedelta(seconds=round(left)))}

    def total_steps(self) -> int:
        """Of the whole run, the epochs to come taken to be as long as this one; online they differ by dead groups."""
        epochs, steps = self.trainer.max_epochs or -1, self.trainer.max_steps
        ends = [steps] if steps >= 0 else []
        whole = self._before + (epochs - self.trainer.current_epoch) * self._data.steps
        return min([*ends, whole] if epochs >= 0 else ends, default=0)

    @property
    def _data(self) -> GroupDataModule:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, GroupDataModule)
        return data


class TrainBar(_Left, TQDMProgressBar):
    """One bar an epoch, each left on a line of its own, so that what an iteration prints does not run into it."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5, leave=True)


class TrainLog(_Left):
    """`step 37/750  epoch 2  loss 0.522  ...  left 0:12:40`, every ten seconds and after an epoch's last step."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console, self._printed = console, 0.0

    def disable(self) -> None:
        self._console = Console(quiet=True)

    def enable(self) -> None:
        pass

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *rest)
        now = time.monotonic()
        if now - self._printed > EVERY or trainer.is_last_batch:
            self._printed = now
            shown = "  ".join(
                f"{k} {f'{v:.3g}' if isinstance(v, float) else v}"
                for k, v in self.get_metrics(trainer, pl_module).items()
            )
            step = f"step {trainer.global_step}/{self.total_steps()}  epoch {trainer.current_epoch}"
            self._console.print(f"{step}  {shown}", soft_wrap=True)

"""Policies of chosen steps, kept beside the last one: what accuracy by training step is measured with.

    runs/<run>/points/000016/     the weights after 16 optimiser steps, as `runs/<run>/policy` has the last ones

What always holds: a step's weights are there, whole, before a checkpoint says that the step is done; so a run killed
and resumed keeps what one never killed keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpo_train.export import save_policy
from gpo_train.policy import Policy
from gpo_train.run import Run


def folder_of(run: Run, step: int) -> Path:
    return run.folder / "points" / f"{step:06d}"


class KeptPoints(Callback):
    """Writes them; `policy` gives what evaluation would use: the policy, or its average."""

    def __init__(self, run: Run, steps: Collection[int], policy: Callable[[], Policy]) -> None:
        self.run, self.steps, self.policy = run, steps, policy

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        if trainer.global_step in self.steps:
            save_policy(self.policy(), folder_of(self.run, trainer.global_step), write=trainer.is_global_zero)

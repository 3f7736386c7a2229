"""Online: a Lightning callback that lets the policy draw the groups it is trained on.

    epoch e = i * epochs_per_iteration:  write the policy's weights -> draw, measure, commit <run>-it<i> -> train on it

Online is offline with the policy as the writer: the same `draw`, store, catalog, reader and objective. `prepare(epoch)`
is what a GroupDataModule asks at the beginning of every epoch, before its first step and after the checkpoint of the
one before. What always holds: what is committed is never drawn again, and what is not is drawn with the weights that
begin the epoch, so a run killed while drawing or training ends with the weights of one never killed.

Use in a Trainer of your own: `L.Trainer(callbacks=[OnlineRegeneration(recipe, Online(iterations=4))]).fit(my_module)`.
All that it asks of the module is `.policy`, a gpo_train Policy; a batch is one TrainGroup. With a GroupDataModule made
with `prepare` a batch is a list of them, as GPOModule takes it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from gpo_data import hardware
from gpo_data.errors import RunError, UsageError
from gpo_data.generation.progress import Clock
from gpo_data.lake.latents import LARGE
from gpo_data.lake.manifest import with_dtype
from gpo_data.lake.reader import Reader, TrainGroup, batches, merge
from gpo_data.recipe import Online, Recipe
from gpo_train.data import cache_of, snapshot_of
from gpo_train.lightning_fixes import Average
from gpo_train.online.choose import drawn
from gpo_train.online.guards import reason_to_stop
from gpo_train.online.iterations import Iteration, history, prune
from gpo_train.online.rollout import Ranks, Rollout
from gpo_train.policy import Policy
from gpo_train.run import RUNS


@dataclasses.dataclass
class Trained:
    """What an epoch's steps have been so far: a checkpoint holds it."""

    epoch: int = -1
    steps: int = 0
    error_diff: float | None = None  # sum over steps; None where no reference is asked
    seconds: float = 0.0
    before: float = 0.0  # seconds of the iteration's earlier epochs


class OnlineRegeneration(Callback):
    """Draws iteration i before epoch i * epochs_per_iteration.

    Args:
        recipe: what and how to draw: task, group_size, sampler, evaluators, reward, where.
        online: how; None takes the recipe's `online:`.
        folder: of the run; its name names the datasets; None is runs/<recipe>-online.
        stopping: whether a signal has asked the run to stop; it is looked at around drawing.
    """

    def __init__(
        self,
        recipe: Recipe,
        online: Online | None = None,
        folder: Path | None = None,
        console: Console | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.online, self.folder = online or recipe.online, folder or RUNS / f"{recipe.name}-online"
        dtype = hardware.dtype_for(recipe.sampler.dtype, hardware.device_of(recipe.sampler.device))
        steps = self.online.num_inference_steps or recipe.sampler.num_inference_steps
        self.recipe = with_dtype(
            dataclasses.replace(
                recipe,
                group_size=self.online.group_size or recipe.group_size,
                sampler=dataclasses.replace(recipe.sampler, num_inference_steps=steps),
            ),
            dtype,
        )
        self.console = console or Console(highlight=False, markup=False)
        self.stopping = stopping
        self.stopped_by: str | None = None
        self.trained = Trained()
        self._prepared: tuple[int, Reader | None] = (-1, None)
        self._clock = 0.0
        self._open = ExitStack()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        module: Any = pl_module
        policy = getattr(module, "policy", None)
        if not isinstance(policy, Policy):
            raise UsageError(
                f"OnlineRegeneration: expected {type(module).__name__}.policy to be a gpo_train Policy, found "
                f"{type(policy).__name__}"
            )
        self.trainer, self.policy = trainer, policy
        strategy = trainer.strategy
        self.ranks = Ranks(trainer.global_rank, trainer.world_size, strategy.barrier, strategy.broadcast)
        if not self.ranks.first:
            self.console = Console(quiet=True)
        self.rollout = Rollout(self.recipe, self.online, self.console, lambda: trainer.loggers, self.stopping)
        self._open.callback(self.rollout.close)
        if trainer.datamodule is None:  # type: ignore[attr-defined]
            module.train_dataloader = self.train_dataloader
            trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
            trainer.fit_loop.max_epochs = self.online.iterations * self.online.epochs_per_iteration

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raises UsageError where the run is further than it is to go."""
        trained = checkpoint["epoch"] / self.online.epochs_per_iteration
        if trained > self.online.iterations:
            raise UsageError(
                f"run {self.folder} has trained {trained:g} iterations: expected --online.iterations "
                f"{math.ceil(trained)} or more, found {self.online.iterations}; its earlier policies are in iterations/"
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._open.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._open.close()  # also before `setup`, where another rank is lost

    def prepare(self, epoch: int) -> Reader | None:
        """Draw what the epoch's iteration lacks; its groups, or None where a rule says that the run is to end.

        Raises Interrupted, RunError.
        """
        number = epoch // self.online.epochs_per_iteration
        if self._prepared[0] == number:
            return self._prepared[1]
        iteration = Iteration(self.folder, number)
        if iteration.summary() is None:
            self.rollout.draw(iteration, self._writer(), self.ranks, self.trainer.global_step)
        with (clock := Clock()).time("catalog"):
            reader = self._read(number)
        if self.ranks.first and "catalog" not in (seconds := iteration.expect_summary().seconds):
            iteration.note(seconds=seconds | clock.seconds)
        self.stopped_by = self._reason_to_stop(number, len(reader))
        if self.stopped_by:
            self.console.print(f"stopping: {self.stopped_by}", soft_wrap=True)
            self.trainer.should_stop = True
        self._prepared = number, None if self.stopped_by else reader
        return self._prepared[1]

    def train_dataloader(self) -> Any:
        """The epoch's groups in the order of `lake.reader.batches`, one a batch, this rank's share of them."""
        epoch = self.trainer.current_epoch
        reader = self.prepare(epoch)
        if reader is None:
            return []
        order = [step[0] for step in batches(len(reader), 1, self.recipe.seed, epoch)]
        rank, world = self.ranks.rank, self.ranks.world
        mine: Any = order[rank : len(order) // world * world : world]
        loader: torch.utils.data.DataLoader[TrainGroup] = torch.utils.data.DataLoader(
            reader, batch_size=None, sampler=mine
        )
        return loader

    def _writer(self) -> Policy:
        """Who draws: the policy that trains, or its average."""
        if self.online.rollout_policy != "ema":
            return self.policy
        average: Policy = next(c for c in self.trainer.callbacks if isinstance(c, Average)).policy  # type: ignore[attr-defined]
        return average

    def _read(self, number: int) -> Reader:
        """The groups of an iteration and of those that are replayed; what is too old to be is pruned."""
        names = drawn(self.recipe, self.folder, range(max(0, number - self.online.replay + 1), number + 1))
        tables = [snapshot_of(self.recipe, name) for name in names]
        if self.online.keep_last is not None and self.ranks.first:
            for i in range(max(0, number + 1 - self.online.keep_last)):
                prune(self.recipe, Iteration(self.folder, i))
        train = self.recipe.train
        return Reader(self.recipe.lake, merge(tables), cache_of(train), train.unconditional, LARGE)

    def _reason_to_stop(self, number: int, groups: int) -> str | None:
        wanted = self.recipe.train.groups_per_step
        if groups >= wanted:
            # Not by how far its own training goes, which a resumed run finds noted and one never killed does not.
            *before, last = history(self.folder)[: number + 1]
            return reason_to_stop([*before, dataclasses.replace(last, distance=None)], self.online)
        sft = self.recipe.train.objective == "sft"
        having = "a member of train.sft_reward or more" if sft else "a reward that varies"
        found = (
            f"nothing left to learn: {groups} groups of iteration {number} have {having}, and "
            f"train.groups_per_step is {wanted}"
        )
        if number == 0:
            raise RunError(f"{found}; try another reward: or where:, or draw more or other prompts")
        return found

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.trained.epoch != trainer.current_epoch:  # not where it is resumed in the middle
            again = trainer.current_epoch % self.online.epochs_per_iteration
            before = self.trained.before + self.trained.seconds if again else 0.0
            self.trained = Trained(trainer.current_epoch, before=before)
        self._clock = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        now, done, far = time.monotonic(), self.trained, trainer.callback_metrics.get("error_diff")
        self.trained = dataclasses.replace(
            done,
            steps=done.steps + 1,
            error_diff=None if far is None else (done.error_diff or 0.0) + float(far),
            seconds=done.seconds + now - self._clock,
        )
        self._clock = now
        if trainer.is_last_batch and self.ranks.first:  # before the checkpoint that says the epoch is done
            self._note()

    def _note(self) -> None:
        done = self.trained
        iteration = Iteration(self.folder, done.epoch // self.online.epochs_per_iteration)
        iteration.note(
            distance=None if done.error_diff is None else done.error_diff / done.steps,
            seconds=iteration.expect_summary().seconds | {"train": done.before + done.seconds},
        )

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self.trained)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trained = Trained(**state)

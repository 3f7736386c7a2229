"""Online: a Lightning callback that lets the policy draw the groups it is trained on.

    epoch e = i * interval:  write the policy's weights -> draw, measure, commit dataset <run>-it<i> -> train on it

Online is offline with the policy as the writer: the same `draw`, store, catalog, reader and objective. The callback
answers GroupDataModule's question `groups_of(epoch)`, which Lightning asks at the start of every epoch, after the
checkpoint of the one before. What always holds: an iteration that is committed is never drawn again, and one that is
not is drawn with the weights that were on disk when it began, so a run killed while drawing or training ends with the
weights of one never killed.

Use in a Trainer of your own: `L.Trainer(callbacks=[OnlineRegeneration(recipe, Online(iterations=4))]).fit(my_module)`.
All that it asks of the module is `.policy`, a gpo_train Policy; a batch is one TrainGroup. With a GroupDataModule,
whose groups it replaces, a batch is a list of them, as GPOModule takes it.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from rich.console import Console

from gpo_data import evaluators, hardware, models
from gpo_data.audit.show import grid
from gpo_data.errors import RunError, UsageError
from gpo_data.generation.generate import draw
from gpo_data.generation.plan import plan
from gpo_data.generation.progress import Clock
from gpo_data.generation.worker import finish_group
from gpo_data.lake.manifest import with_dtype
from gpo_data.lake.reader import Reader, batches, merge
from gpo_data.lake.shard import dataset_folder, sidecar_path
from gpo_data.models import Model, repeat
from gpo_data.recipe import Online, Recipe
from gpo_data.tasks import TASKS
from gpo_train.data import snapshot_of
from gpo_train.export import save_policy
from gpo_train.online.guards import reason_to_stop
from gpo_train.online.iterations import Iteration, choose, history, prune, summarise, write_prompts
from gpo_train.policy import Policy
from gpo_train.run import RUNS

GRID_PROMPTS, GRID_MEMBERS = 4, 8


class OnlineRegeneration(Callback):
    """Draws iteration i at the start of epoch i * interval.

    Args:
        recipe: what and how to draw: task, group_size, sampler, evaluators, reward, where.
        online: how; None takes the recipe's `online:`.
        folder: of the run; its name names the datasets; None is runs/<recipe>-online.
    """

    def __init__(
        self,
        recipe: Recipe,
        online: Online | None = None,
        folder: Path | None = None,
        console: Console | None = None,
    ) -> None:
        self.online, self.folder = online or recipe.online, folder or RUNS / f"{recipe.name}-online"
        dtype = hardware.dtype_for(recipe.sampler.dtype, hardware.device_of(recipe.sampler.device))
        self.recipe = with_dtype(
            dataclasses.replace(recipe, group_size=self.online.group_size or recipe.group_size), dtype
        )
        self.console = console or Console(highlight=False)
        self.stopped_by: str | None = None
        self._read: tuple[int, Reader] | None = None
        self._model: Model | None = None
        self._s, self._steps, self._started = 0.0, 0, 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.trainer, module = trainer, cast(Any, pl_module)
        if not isinstance(getattr(module, "policy", None), Policy):
            raise UsageError(
                f"OnlineRegeneration: expected {type(module).__name__}.policy to be a gpo_train Policy, found "
                f"{type(getattr(module, 'policy', None)).__name__}"
            )
        self.module = module
        # Every epoch, because a run resumed in the middle of an iteration would count the interval from there.
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data is not None:
            module.interval = self.online.epochs_per_iteration
            data.groups_of = self.groups_of
        else:
            module.train_dataloader = self.train_dataloader
            trainer.fit_loop.max_epochs = self.online.iterations * self.online.epochs_per_iteration
        if not trainer.is_global_zero:
            self.console = Console(quiet=True)

    # -- drawing -----------------------------------------------------------------------------------------------------

    def groups_of(self, epoch: int) -> Reader:
        """The reader of an epoch; draws its iteration if that is not committed. Raises Interrupted, RunError."""
        number = epoch // self.online.epochs_per_iteration
        if self._read is not None and self._read[0] == number:
            return self._read[1]
        iteration = Iteration(self.folder, number)
        if iteration.summary() is None:
            self._draw(iteration)
        with (clock := Clock()).time("catalog"):
            reader = self._reader(number)
        self._guard(iteration, reader)
        if self.trainer.is_global_zero and "catalog" not in (iteration.summary() or {}).get("seconds", {}):
            iteration.note(seconds=(iteration.summary() or {})["seconds"] | clock.seconds)
        self._read = number, reader
        return reader

    def train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        """The epoch's groups in the order of `lake.reader.batches`, one a batch, this rank's share of them."""
        epoch, trainer = self.trainer.current_epoch, self.trainer
        reader = self.groups_of(epoch)
        order = [step[0] for step in batches(len(reader), 1, self.recipe.seed, epoch)]
        rank, world = trainer.global_rank, trainer.world_size
        mine: Any = order[rank : len(order) // world * world : world]
        return torch.utils.data.DataLoader(reader, batch_size=None, sampler=mine)

    def _draw(self, iteration: Iteration) -> None:
        started, clock = time.monotonic(), Clock()
        with clock.time("policy"):
            if self.trainer.is_global_zero and not (iteration.folder / "prompts.jsonl").is_file():
                chosen = choose(self.recipe, self.online, iteration)
                write_prompts(chosen, TASKS[self.recipe.task.kind], iteration.folder / "prompts.jsonl")
            if not iteration.policy.is_dir():  # also where the base draws: to compare
                dtype = getattr(torch, self.recipe.sampler.dtype)
                save_policy(self._writer(), iteration.policy, dtype, write=self.trainer.is_global_zero)
            self.trainer.strategy.barrier("policy")
            recipe = iteration.recipe(self.recipe, self.online.rollout_policy)
            model = self._open(recipe)
        self.console.print(f"iteration {iteration.number}: dataset {iteration.name}", soft_wrap=True)
        draw(recipe, self.console, model, (self.trainer.global_rank, self.trainer.world_size), clock)
        self.trainer.strategy.barrier("drawn")
        folder = dataset_folder(recipe.lake, iteration.name)
        missing = [shard for shard in plan(recipe) if not sidecar_path(folder, shard.shard_id).is_file()]
        if missing:
            raise RunError(
                f"dataset {iteration.name}: {len(missing)} shards are being drawn by another process; "
                f"run the same command again when it has finished"
            )
        if self.trainer.is_global_zero:
            self._picture(iteration, model)
            seconds = {"draw": time.monotonic() - started} | clock.seconds
            facts = summarise(self.recipe, iteration.name)
            self._log({f"online/{k}": v for k, v in facts.items()} | {f"seconds/{k}": v for k, v in seconds.items()})
            self.console.print(f"iteration {iteration.number}: " + line(facts), soft_wrap=True)
            iteration.note(iteration=iteration.number, **facts, seconds=seconds)
        self._offload(model)
        self.trainer.strategy.barrier("summary")

    def _writer(self) -> Any:
        """The Policy that draws: the one that trains, or its average."""
        if self.online.rollout_policy == "ema":
            average: Any = next(c for c in self.trainer.callbacks if isinstance(c, EMAWeightAveraging))  # type: ignore[attr-defined]
            return average._average_model.module.policy
        return self.module.policy

    def _open(self, recipe: Recipe) -> Model:
        """The model that draws, in the sampler's precision, with the recipe's policy in it, on the device."""
        if self._model is None:
            self._model = models.load(models.resolve(recipe.model, recipe.revision), recipe.sampler)
        model: Any = self._model
        model.place(model.device)
        if recipe.policy:
            models.load_policy_weights(model, models.policy_folder(recipe.policy))
        return self._model

    def _offload(self, model: Any) -> None:
        """Off the GPU while the policy trains."""
        if model.device.type != "cpu":
            model.place(torch.device("cpu"))
            torch.cuda.empty_cache()

    def _reader(self, number: int) -> Reader:
        first = max(0, number - self.online.replay + 1)
        tables = [
            snapshot_of(self.recipe, Iteration(self.folder, i).name, self.recipe.where)
            for i in range(first, number + 1)
        ]
        if self.online.keep_last is not None and self.trainer.is_global_zero:
            for i in range(max(0, number + 1 - self.online.keep_last)):
                prune(self.recipe, Iteration(self.folder, i))
        return Reader(self.recipe.lake, merge(tables))

    # -- watching ----------------------------------------------------------------------------------------------------

    def _guard(self, iteration: Iteration, reader: Reader) -> None:
        """Ask the trainer to stop, before the iteration's first step, if a rule says so."""
        found = reason_to_stop(history(self.folder)[: iteration.number + 1], self.online)
        wanted = self.recipe.train.groups_per_step
        if len(reader) < wanted:
            found = (
                f"nothing left to learn: {len(reader)} groups of iteration {iteration.number} have a reward that "
                f"varies, and train.groups_per_step is {wanted}"
            )
            if iteration.number == 0:
                raise RunError(f"{found}; try another reward: or where:, or draw more or other prompts")
        if found:
            self._stop(found)

    def _stop(self, why: str) -> None:
        self.stopped_by = why
        self.console.print(f"stopping: {why}", soft_wrap=True)
        self.trainer.should_stop = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self._s, self._steps, self._started = 0.0, 0, time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        self._s, self._steps = self._s + float(trainer.callback_metrics.get("error_diff", 0.0)), self._steps + 1

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        iteration = Iteration(self.folder, trainer.current_epoch // self.online.epochs_per_iteration)
        if not self._steps or not trainer.is_global_zero:
            return
        before = iteration.summary() or {}
        trained = before["seconds"].get("train", 0.0) + time.monotonic() - self._started
        iteration.note(distance=self._s / self._steps, seconds=before["seconds"] | {"train": trained})

    def state_dict(self) -> dict[str, Any]:
        return {"s": self._s, "steps": self._steps, "seconds": time.monotonic() - self._started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._s, self._steps, self._started = state["s"], state["steps"], time.monotonic() - state["seconds"]

    def _log(self, values: dict[str, float]) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.trainer.global_step)

    def _picture(self, iteration: Iteration, model: Model) -> None:
        """Fixed prompts and seeds, drawn by this iteration's policy: on disk and in TensorBoard."""
        every = self.online.grid_every
        if not every or iteration.number % every:
            return
        judges = evaluators.build(self.recipe)
        groups = []
        for planned in [g for shard in plan(self.recipe) for g in shard.groups][:GRID_PROMPTS]:
            seeds = planned.seeds[:GRID_MEMBERS]
            conditioning = model.encode([planned.prompt.text])
            latents = model.draw(repeat(conditioning, [len(seeds)]), seeds)
            one = {k: v[0] for k, v in conditioning.items()}
            few = type(planned)(planned.key, planned.prompt, seeds)
            groups.append(finish_group(self.recipe, model, judges, few, latents, one))
        sheet = grid(groups)
        sheet.save(iteration.folder / "grid.png")
        for logger in self.trainer.loggers:
            experiment: Any = getattr(logger, "experiment", None)
            if hasattr(experiment, "add_image"):
                experiment.add_image("grid", np.asarray(sheet), iteration.number, dataformats="HWC")


def line(facts: dict[str, Any]) -> str:
    """A summary for people and for grep."""
    exact = f"  exact {100 * facts['exact']:.1f}%" if facts.get("exact") is not None else ""
    return (
        f"reward {facts['reward']:.3f}{exact}  dead {facts['dead']}/{facts['groups']}  "
        f"diversity {facts['diversity']:.3f}"
    )

"""The verb `fit`: recipe -> run. Builds the parts, hands them to lightning.Trainer, and writes the policy's weights.

    offline   trains on datasets of the lake, frozen in runs/<run>/snapshot.parquet (snapshot.py)
    online    trains on what the policy draws (online/)

Ctrl-C and SIGTERM stop after the step (or the batch of pictures) in flight; the same command goes on there.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import loggers as logging_to
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from gpo_data import hardware, models
from gpo_data.errors import RunError, UsageError
from gpo_data.generation.generate import same_signals
from gpo_data.generation.worker import Interrupted
from gpo_data.recipe import Recipe, Train
from gpo_train.data import GroupDataModule, GroupsOf
from gpo_train.export import save_policy
from gpo_train.module import GPOModule
from gpo_train.online.callback import OnlineRegeneration
from gpo_train.online.iterations import history
from gpo_train.policy import Policy, open_for_training
from gpo_train.progress import progress
from gpo_train.run import RUNS, Run, open_run, settle
from gpo_train.settings import train_settings
from gpo_train.sharded import ShardedGPOModule
from gpo_train.snapshot import dataset_names, frozen_groups


class Stopped(Exception):
    """Ctrl-C or SIGTERM: a checkpoint is on disk."""


def fit(recipe: Recipe, name: str | None, console: Console, mode: str = "offline", runs: Path = RUNS) -> Run:
    """Train, or go on training. Raises UsageError, RunError and Stopped."""
    name = name or f"{recipe.name}-{mode}"
    begun = (runs / name / "run.json").is_file()
    recipe = settle(recipe, runs / name, [] if begun or mode == "online" else dataset_names(recipe, recipe.train))
    settings = train_settings(recipe, mode)
    iterations = recipe.online.iterations if mode == "online" else 0
    model_folder = models.resolve(recipe.model, recipe.revision)
    run = open_run(name, recipe, mode, model_folder, runs)
    card = run.card()
    if len(history(run.folder)) < iterations and "stopped_by" not in card:
        run.note(state="training", recipe=dataclasses.asdict(recipe))  # also where it had finished with fewer
    if run.card()["state"] == "finished":
        console.print(f"run {run.folder} is finished; another with --run NAME", soft_wrap=True)
        return run
    seed = recipe.seed if settings.seed is None else settings.seed
    L.seed_everything(seed % 2**32, verbose=False)
    _quiet()
    try:
        return _fit(recipe, settings, run, seed, model_folder, console)
    except UsageError:
        if not any(path for part in BEGUN for path in run.folder.glob(part)):  # nothing began: the name stays free
            shutil.rmtree(run.folder)
        raise


BEGUN = ("snapshot.parquet", "iterations/*/summary.json", "checkpoints/last.ckpt")


def _fit(recipe: Recipe, settings: Train, run: Run, seed: int, model_folder: Path, console: Console) -> Run:
    stop = _StopOnSignals()
    callbacks: list[Callback] = [stop]
    regeneration = None
    groups_of: GroupsOf
    if run.card()["mode"] == "online":
        regeneration = OnlineRegeneration(recipe, folder=run.folder, console=console)
        callbacks.insert(0, regeneration)  # what it counts is in the checkpoint that `stop` writes
        groups_of = regeneration.groups_of
    else:
        groups_of = frozen_groups(recipe, settings, run, console)
    policy = Policy(load_for_training(recipe, settings, model_folder), settings)
    kind = ShardedGPOModule if settings.trainer.get("strategy") == "fsdp2" else GPOModule
    module = kind(policy, settings, seed, run.folder, getattr(torch, recipe.sampler.dtype))
    data = GroupDataModule(groups_of, settings, seed)
    hardware.take_threads(processes_of(settings))
    trainer = make_trainer(recipe, settings, run, callbacks, console)
    resume = run.last if run.last.is_file() else None
    if trainer.is_global_zero:
        size = sum(p.numel() for p in policy.trainable())
        console.print(
            f"run {run.folder}: {'resuming' if resume else 'training'} {size / 1e6:.2f} M parameters "
            f"({settings.tuning}) on {hardware.describe(trainer.strategy.root_device.type, settings.precision)}, "
            f"{settings.epochs} epochs of {settings.num_inner_epochs} inner epochs",
            soft_wrap=True,
        )
        if warning := hardware.warning_of("train.precision", settings.precision, trainer.strategy.root_device.type):
            console.print(warning, soft_wrap=True)
    try:
        with same_signals():
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=False)
    except Interrupted:
        raise Stopped from None
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory: {str(error).splitlines()[0]} Lower train.micro_batch_size (now "
            f"{settings.micro_batch_size}; the gradient stays the same), set train.gradient_checkpointing: "
            f"true, train.precision: bfloat16 or train.tuning: lora; the last checkpoint is {run.last}"
        ) from None
    if stop.stopped or trainer.interrupted:
        raise Stopped
    save_policy(policy, run.policy, getattr(torch, recipe.sampler.dtype), write=trainer.is_global_zero)
    if trainer.is_global_zero:
        facts: dict[str, Any] = {"ranks": trainer.world_size}
        if regeneration and regeneration.stopped_by:
            facts["stopped_by"] = regeneration.stopped_by
        run.note(state="finished", steps=trainer.global_step, train_seconds=round(stop.seconds, 1), **facts)
        console.print(
            f"trained {trainer.global_step} steps in {stop.seconds:.0f} s; policy: {run.policy}", soft_wrap=True
        )
    return run


def processes_of(settings: Train) -> int:
    """Ranks on this machine that compute on its CPU at once."""
    devices: Any = settings.trainer.get("devices", 1)
    return len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 1


def load_for_training(recipe: Recipe, settings: Train, model_folder: Path) -> models.Model:
    """The model in the precision that trains, with the recipe's policy in it."""
    model = open_for_training(model_folder, recipe.sampler, settings)
    if recipe.policy:
        models.load_policy_weights(model, models.policy_folder(recipe.policy))
    return model


def make_trainer(recipe: Recipe, settings: Train, run: Run, callbacks: list[Callback], console: Console) -> L.Trainer:
    """lightning.Trainer with the recipe's own options over ours."""
    logs = run.folder / "logs"
    makers: dict[str, Any] = {
        "csv": lambda: _csv_logger(logs),
        "tensorboard": lambda: logging_to.TensorBoardLogger(logs, name="tensorboard", version=""),
        "wandb": lambda: logging_to.WandbLogger(name=run.name, save_dir=logs, id=run.name, resume="allow"),
    }
    checkpoint = ModelCheckpoint(
        run.folder / "checkpoints",
        filename="epoch",
        save_last=True,
        every_n_train_steps=settings.checkpoint_steps,
        enable_version_counter=False,
    )
    if settings.ema_decay is not None:  # before the others, one of which may save a checkpoint and stop
        callbacks = [EMAWeightAveraging(decay=settings.ema_decay), *callbacks]
    bar = [progress(console)] if settings.trainer.get("enable_progress_bar", True) else []
    options: dict[str, Any] = {
        "accelerator": "cpu" if recipe.sampler.device == "cpu" else "auto",
        "devices": 1,
        "max_epochs": settings.epochs,
        "callbacks": [checkpoint, *bar, *callbacks],
        "logger": [_logger(name, makers[name]) for name in settings.loggers] or False,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": run.folder,
        "reload_dataloaders_every_n_epochs": int(settings.sequential),
    }
    try:
        return L.Trainer(**(options | settings.trainer))
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UsageError(f"train.trainer: lightning.Trainer refuses: {' '.join(str(error).split())}") from None


def _csv_logger(logs: Path) -> logging_to.CSVLogger:
    """metrics.csv; that of a run that was stopped and goes on becomes metrics-1.csv, -2 and so on."""
    before = logs / "csv" / "metrics.csv"
    if before.is_file() and getattr(rank_zero_only, "rank", 0) == 0:  # Lightning would delete it
        before.rename(before.with_name(f"metrics-{len(list(before.parent.glob('*.csv')))}.csv"))
    return logging_to.CSVLogger(logs, name="csv", version="", flush_logs_every_n_steps=10)


def _logger(name: str, make: Any) -> Any:
    try:
        return make()
    except ModuleNotFoundError as error:
        raise UsageError(f"train.loggers: {name}: its package is missing: {' '.join(str(error).split())}") from None


class _StopOnSignals(Callback):
    """The first Ctrl-C or SIGTERM ends the step in flight and writes a checkpoint; also counts the seconds trained.

    It also writes one after an epoch's last step: ModelCheckpoint counts either steps or epochs, and online a run that
    is killed while it draws should not train the iteration before once more.
    """

    def __init__(self) -> None:
        self.stopped, self.seconds, self._started = False, 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.monotonic()
        module: Any = pl_module
        module.stopping = lambda: self.stopped

        def handle(number: int, frame: object) -> None:
            self.stopped = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        self.seconds += time.monotonic() - self._started
        self._started = time.monotonic()
        if self.stopped or trainer.is_last_batch:
            checkpoint: Any = trainer.checkpoint_callback
            trainer.save_checkpoint(Path(checkpoint.dirpath) / "last.ckpt", weights_only=False)
        if self.stopped:
            raise Stopped

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Going on from an epoch's last step, Lightning does not count the next epoch as begun, and would take a
        # checkpoint in the middle of it for one at its end: it would train its first batches twice.
        fit_loop = checkpoint["loops"]["fit_loop"]
        batch = fit_loop["epoch_loop.batch_progress"]["current"]
        if batch["completed"] < batch["processed"]:  # saved by a hook of a batch: inside an epoch
            for count in (fit_loop["epoch_progress"]["total"], fit_loop["epoch_progress"]["current"]):
                count["ready"] = count["started"] = count["processed"] + 1

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = state["seconds"]


def _quiet() -> None:
    """Lightning's advice on what this loop does on purpose."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*in eval mode at the start of training.*",
        ".*exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*is smaller than the logging interval.*",
        ".*overridden `transfer_batch_to_device`.*",
        ".*ModelCheckpoint with manual optimization.*",
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # what the denoiser says is never changed in place
    ):
        warnings.filterwarnings("ignore", text)

"""The verb `fit`: recipe -> run. Builds the parts, hands them to lightning.Trainer, and writes the policy's weights.

    offline   trains on datasets of the lake, frozen in runs/<run>/snapshot.parquet (snapshot.py)
    online    trains on what the policy draws (online/)

Ctrl-C, SIGTERM and SIGUSR1 stop after the step (or the batch of pictures) in flight; the same command goes on there.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import loggers as logging_to
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from gpo_data import hardware, models
from gpo_data.errors import Interrupted, RunError, UsageError
from gpo_data.lake.remote import files_in
from gpo_data.lake.shard import dataset_folder
from gpo_data.lifeline import end_with_launcher
from gpo_data.recipe import Recipe, Train
from gpo_data.signals import same_signals
from gpo_train import dead_zone
from gpo_train.checkpoint import Checkpoints, SamePlace, newest
from gpo_train.data import GroupDataModule, Prepare, expect_ranks
from gpo_train.evaluation import rollback
from gpo_train.export import save_policy
from gpo_train.heartbeat import Heartbeat
from gpo_train.launcher import devices_of, environment, rank, ranks_of, take_rank
from gpo_train.lightning_fixes import Average, WholeFiles, quiet
from gpo_train.module import GPOModule
from gpo_train.online.callback import OnlineRegeneration
from gpo_train.online.iterations import Iteration, history
from gpo_train.points import KeptPoints
from gpo_train.policy import Policy, open_for_training
from gpo_train.progress import progress
from gpo_train.run import RUNS, Run, named, open_run, settle
from gpo_train.settings import ending, train_settings, trial_options
from gpo_train.sharded import ShardedGPOModule
from gpo_train.snapshot import dataset_names, frozen_groups

# What collectives say when the process at the other end is gone: gloo, NCCL, and torch's store.
OF_A_RANK = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe|DistNetworkError|recvValue|sendBytes", re.I)
BEGUN = ("iterations/*/summary.json", "checkpoints/*.ckpt")


@end_with_launcher()
def fit(
    recipe: Recipe,
    name: str | None,
    console: Console,
    mode: str = "offline",
    runs: Path = RUNS,
    points: Collection[int] = (),
) -> Run:
    """Train, or go on training. Raises UsageError, RunError and Interrupted.

    `points`: steps whose policies are kept (points.py).
    """
    name = name or f"{recipe.name}-{mode}"
    take_rank(recipe.train.trainer)
    if trial := trial_options(recipe):
        name = f"{name}-trial"
        console.print(f"a trial ({', '.join(trial)}): run {name}, begun anew, and no policy", soft_wrap=True)
        if rank() == 0:
            forget(recipe, named(runs, name))
    folder = named(runs, name).folder
    before = {*folder.iterdir()} if folder.is_dir() else None
    begun = (folder / "run.json").is_file()
    recipe = settle(recipe, folder, [] if begun or mode == "online" else dataset_names(recipe, recipe.train))
    settings = train_settings(recipe, mode)
    expect_ranks(settings, ranks_of(settings.trainer))  # before they are started, and find what another one removes
    model_folder = models.resolve(recipe.model, recipe.revision)
    models.expect_unconditional(model_folder, settings.unconditional)
    run = open_run(name, recipe, mode, model_folder, runs)
    with run.claim(rank() == 0):
        iterations = recipe.online.iterations if mode == "online" else 0
        if len(history(run.folder)) < iterations and run.manifest().stopped_by is None:
            # Also where it had finished with fewer.
            run.note(state="training", recipe=dataclasses.asdict(recipe), rollback=None)
        if run.manifest().state == "finished":
            console.print(f"run {run.folder} is finished; another with --run NAME", soft_wrap=True)
            return run
        seed = recipe.seed if settings.seed is None else settings.seed
        L.seed_everything(seed % 2**32, verbose=False)
        quiet()
        try:
            return _fit(recipe, settings, run, seed, model_folder, console, bool(trial), points)
        except UsageError:
            made_here = not begun and rank() == 0  # by this command, and nothing began: the name stays free
            if made_here and not any(path for part in BEGUN for path in run.folder.glob(part)):
                _take_back(run.folder, before)
            raise


def _take_back(folder: Path, before: Collection[Path] | None) -> None:
    """Remove what this command wrote into the folder.

    `before`: what lay in it, which is somebody's, such as a log of this very command; None: there was no folder.
    """
    if before is None:
        shutil.rmtree(folder)
        return
    for path in folder.iterdir():
        if path not in before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _fit(
    recipe: Recipe,
    settings: Train,
    run: Run,
    seed: int,
    model_folder: Path,
    console: Console,
    trial: bool,
    points: Collection[int],
) -> Run:
    dtype = getattr(torch, recipe.sampler.dtype)
    online = None
    if run.manifest().mode == "online":
        online = OnlineRegeneration(recipe, folder=run.folder, console=console, stopping=lambda: checkpoints.stopped)
    prepare: Prepare = online.prepare if online else frozen_groups(recipe, settings, run, console)
    if online and recipe.online.rollback:
        rollback.check(recipe, run, console if rank() == 0 else Console(quiet=True))
    policy = Policy(load_for_training(recipe, settings, model_folder), settings)
    data = GroupDataModule(prepare, settings, seed)
    checkpoints = Checkpoints(run.folder / "checkpoints", settings.checkpoint_steps, data)
    average = Average(settings.ema_decay) if settings.ema_decay is not None else None
    kept = KeptPoints(run, points, lambda: average.policy if average else policy)
    alive = Heartbeat(checkpoints.folder, console)
    # Each sees what the one before it did; a checkpoint is written when all have seen a step.
    resume = newest(checkpoints.folder, console)
    found = (SamePlace(run, resume), average, online, kept, checkpoints, alive)
    callbacks: list[Callback] = [c for c in found if c is not None]
    kind = ShardedGPOModule if settings.trainer.get("strategy") == "fsdp2" else GPOModule
    interval = recipe.online.epochs_per_iteration if online else 1
    module = kind(
        policy,
        settings,
        seed,
        run.folder,
        dtype,
        interval,
        stopping=lambda: checkpoints.stopped,
        base=lambda: load_for_training(recipe, settings, model_folder).denoiser,
    )
    hardware.take_threads(devices_of(settings.trainer))
    trainer = make_trainer(recipe, settings, run, callbacks, console)
    if trainer.is_global_zero:
        _say_what_begins(recipe, settings, run, policy, trainer.strategy.root_device.type, bool(resume), console)
    with _told(settings, trainer, checkpoints.folder), same_signals():
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    if trainer.interrupted:
        raise Interrupted
    if trial:
        run.note(state="trial", steps=trainer.global_step)
        console.print(f"trial: {trainer.global_step} steps in {checkpoints.seconds:.0f} s", soft_wrap=True)
        return run
    stopped_by = online.stopped_by if online else None
    if data.position.epoch < settings.epochs and not stopped_by:
        raise RunError(
            f"run {run.folder}: training ended in epoch {data.position.epoch} of {settings.epochs}, at step "
            f"{trainer.global_step}; the same command goes on from the last checkpoint"
        )
    rolls_back = online is not None and recipe.online.rollback is not None
    trained = average.policy if average else policy
    save_policy(trained, run.last if rolls_back else run.policy, write=trainer.is_global_zero)
    if trainer.is_global_zero:
        run.note(stopped_by=stopped_by)
        chosen = rollback.to_best(recipe, run, console) if rolls_back else None
        run.note(
            state="finished",
            steps=trainer.global_step,
            train_seconds=round(checkpoints.seconds, 1),
            ranks=trainer.world_size,
            peak_memory=hardware.peak_memory(trainer.strategy.root_device.type),
            rollback=chosen,
        )
        console.print(
            f"trained {trainer.global_step} steps in {checkpoints.seconds:.0f} s; policy: {run.policy}", soft_wrap=True
        )
    return run


def _say_what_begins(
    recipe: Recipe, settings: Train, run: Run, policy: Policy, device: str, resuming: bool, console: Console
) -> None:
    size = sum(p.numel() for p in policy.trainable())
    console.print(
        f"run {run.folder}: {'resuming' if resuming else 'training'} {size / 1e6:.2f} M parameters ({settings.tuning}) "
        f"on {hardware.describe(device, settings.precision)}, {settings.epochs} epochs of {settings.num_inner_epochs} "
        f"inner epochs",
        soft_wrap=True,
    )
    if warning := hardware.warning_of("train.precision", settings.precision, device):
        console.print(warning, soft_wrap=True)
    unused = [key for key in ("kl", "clip_range", "mean_shift_penalty") if getattr(settings, key)]
    if settings.objective == "sft" and unused:
        console.print(
            f"train.objective: sft asks no reference: train.{', train.'.join(unused)} say nothing to it", soft_wrap=True
        )
    if told := dead_zone.warning(recipe, settings, policy.denoiser, run.manifest().mode == "online"):
        console.print(told, soft_wrap=True)


@contextmanager
def _told(settings: Train, trainer: L.Trainer, checkpoints: Path) -> Iterator[None]:
    """What ends a training, in words: a RunError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory: {str(error).splitlines()[0]} Lower train.micro_batch_size (now "
            f"{settings.micro_batch_size}; the gradient stays the same), set train.gradient_checkpointing: "
            f"true, train.precision: bfloat16 or train.tuning: lora; the last checkpoint is in {checkpoints}"
        ) from None
    except RuntimeError as error:
        if trainer.world_size == 1 or not OF_A_RANK.search(str(error)):
            raise
        raise RunError(
            f"another rank has ended, so this one does; its own output says why. The same command on all nodes goes on "
            f"from the last checkpoint in {checkpoints}. Heard: {' '.join(str(error).split())[:200]}"
        ) from None


def forget(recipe: Recipe, run: Run) -> None:
    """Remove a trial of before, and what it drew. Raises UsageError where another process is at it, or it is none."""
    if not run.folder.is_dir():
        return
    found = run.manifest()
    if found.state == "finished" or not (found.state == "trial" or ending(found.recipe["train"].get("trainer", {}))):
        raise UsageError(
            f"run {run.folder}: a trial begins anew, and expected none or an earlier trial there, found a run "
            f"({found.state}); choose another --run NAME"
        )
    with run.claim():
        for number in range(len(list((run.folder / "iterations").glob("it*")))):
            folder = dataset_folder(recipe.lake, Iteration(run.folder, number).name)
            for path in files_in(folder, "**/*"):
                if path.is_file():
                    path.unlink()
            if isinstance(folder, Path):
                shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(run.folder)


def load_for_training(recipe: Recipe, settings: Train, model_folder: Path) -> models.Model:
    """The model in the precision that trains, with the recipe's policy in it."""
    model = open_for_training(model_folder, recipe.sampler, settings)
    if recipe.policy:
        models.load_policy_weights(model, models.policy_path(recipe.policy))
    return model


def make_trainer(recipe: Recipe, settings: Train, run: Run, callbacks: list[Callback], console: Console) -> L.Trainer:
    """lightning.Trainer with the recipe's own options over ours."""
    logs = run.folder / "logs"
    makers: dict[str, Any] = {
        "csv": lambda: _csv_logger(logs),
        "tensorboard": lambda: logging_to.TensorBoardLogger(logs, name="tensorboard", version=""),
        "wandb": lambda: logging_to.WandbLogger(name=run.name, save_dir=logs, id=run.name, resume="allow"),
    }
    bar = [progress(console)] if settings.trainer.get("enable_progress_bar", True) else []
    device = torch.device(hardware.device_of(recipe.sampler.device))
    launched = environment(settings.trainer)
    options: dict[str, Any] = {
        "accelerator": device.type,  # as what draws: Lightning's own choice takes Apple's GPU, which has no float64
        "devices": 1 if device.index is None else [device.index],
        "max_epochs": settings.epochs,
        "callbacks": [*bar, *callbacks],
        "plugins": [WholeFiles(), *([launched] if launched else [])],
        "enable_checkpointing": False,  # Checkpoints writes them
        "logger": [_logger(name, makers[name]) for name in settings.loggers] or False,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": run.folder / "checkpoints",  # under SLURM Lightning reads an `hpc_ckpt` of gpo 0.2 there
        "reload_dataloaders_every_n_epochs": 1,  # a resumed epoch is what is left of it
    }
    try:
        trainer = L.Trainer(**(options | settings.trainer))
        if launched:
            launched.validate_settings(trainer.num_devices, trainer.num_nodes)
        return trainer
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UsageError(f"train.trainer: lightning.Trainer refuses: {' '.join(str(error).split())}") from None


def _csv_logger(logs: Path) -> logging_to.CSVLogger:
    """metrics.csv; that of a run that was stopped and goes on becomes metrics-1.csv, -2 and so on."""
    before = logs / "csv" / "metrics.csv"
    if before.is_file() and rank() == 0:  # Lightning would delete it
        before.rename(before.with_name(f"metrics-{len(list(before.parent.glob('*.csv')))}.csv"))
    return logging_to.CSVLogger(logs, name="csv", version="", flush_logs_every_n_steps=10)


def _logger(name: str, make: Any) -> Any:
    try:
        return make()
    except ModuleNotFoundError as error:
        raise UsageError(f"train.loggers: {name}: its package is missing: {' '.join(str(error).split())}") from None

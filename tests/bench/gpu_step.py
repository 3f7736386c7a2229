"""bench/gpu.py's second part: a step of GPO by a plain loop and by ours, samples/s and peak memory.

Both take the group's draws in micro-batches of one draw of all members, in bfloat16, with gradient checkpointing.
The plain loop holds policy, reference and one group in memory. Ours is GPOModule under Lightning on committed shards;
what the reference costs is in its rate: every step's own, or, stored, computed once for the passes that share it.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from gpo_data import models
from gpo_data.lake import catalog
from gpo_data.lake.reader import Reader
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.recipe import Recipe, Train
from gpo_train.data import GroupDataModule
from gpo_train.fit import load_for_training
from gpo_train.module import GPOModule
from gpo_train.noise import epoch_noise
from gpo_train.objectives.group import group_loss
from gpo_train.policy import Policy
from gpo_train.settings import train_settings

WARM = 1  # first steps that are not counted


def measure_steps(
    made: Recipe, dataset: str, device: str, console: Console
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields tuning, variant and its {samples_per_s, peak_gb}, or {failed: why}."""
    reader = Reader(made.lake, take_snapshot(catalog.connect(made.lake), dataset, made.reward))
    for tuning, own in (("lora", "adapters"), ("full", "frozen")):
        settings = {name: settings_of(made, tuning=tuning, reference=name) for name in (own, "stored")}
        variants: dict[str, Callable[[], float]] = {
            "plain loop, second copy": partial(plain_loop, made, settings["stored"], reader, device),
            f"ours, reference: {own}": partial(ours, made, settings[own], reader),
            "ours, reference: stored": partial(ours, made, settings["stored"], reader),
        }
        for name, rate in variants.items():
            console.print(f"{made.sampler.height} px: step, {tuning}, {name}", soft_wrap=True)
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                samples_per_s = rate()
            except torch.OutOfMemoryError:
                yield tuning, name, {"failed": "out of memory"}
                continue
            peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
            yield tuning, name, {"samples_per_s": samples_per_s, "peak_gb": peak}


def settings_of(made: Recipe, **changes: Any) -> Train:
    return dataclasses.replace(train_settings(made), **changes)


def plain_loop(made: Recipe, settings: Train, reader: Reader, device: str) -> float:
    """Policy and a deep copy of it as reference; each asked at every step."""
    model: Any = load_for_training(made, settings, models.resolve(made.model))
    policy = Policy(model, settings).to(device)  # for its adapters and casts; it makes no copy of its own
    reference = copy.deepcopy(policy.denoiser).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.trainable(), lr=settings.learning_rate)
    seconds, samples = [], 0
    for step in range(WARM + min(len(reader), 4) * settings.num_inner_epochs):
        group = reader[step % len(reader)]
        started = time.perf_counter()
        draws = epoch_noise(model, settings, 0, 0, group)
        assert isinstance(group.latents, torch.Tensor) and isinstance(draws.e, torch.Tensor)
        k, n = draws.u.shape
        x_0, advantages = group.latents.float().to(device), group.advantages.to(device)
        conditioning = {name: v.to(device).float().expand(n, *v.shape) for name, v in group.conditioning.items()}
        optimizer.zero_grad()
        for e, t in zip(draws.e.to(device), model.time(draws.u).to(device), strict=True):
            x_t, y = model.noise(x_0, e, t), model.target(x_0, e, t)
            errors = []
            for network in (policy.denoiser, reference):
                with torch.autocast(device, torch.bfloat16), torch.set_grad_enabled(network is policy.denoiser):
                    said = model.predict(x_t, t, conditioning, network)
                errors.append(((y - said.float()) ** 2).flatten(1).mean(1))
            (group_loss((errors[0] - errors[1]).double(), advantages) / k).backward()
        torch.nn.utils.clip_grad_norm_(policy.trainable(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        samples = k * n
    return samples / statistics.median(seconds[WARM:])


def ours(made: Recipe, settings: Train, reader: Reader) -> float:
    policy = Policy(load_for_training(made, settings, models.resolve(made.model)), settings)
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        module = GPOModule(policy, settings, 0, Path(folder))
        trainer = L.Trainer(
            accelerator="cpu" if made.sampler.device == "cpu" else "auto",
            devices=1,
            max_epochs=1,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        trainer.fit(module, datamodule=GroupDataModule(lambda epoch: reader, settings, 0))
    samples = settings.timesteps_per_image * made.group_size
    steps = len(watch.steps)
    return samples * steps / (watch.reference + steps * statistics.median(watch.steps[WARM:]))


class Watch(Callback):
    """Seconds of every step, and of the reference's errors before the first."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.reference = self.then = 0.0

    def on_train_epoch_start(self, *rest: Any) -> None:  # Lightning asks callbacks before the module
        self.then = time.perf_counter()

    def on_train_batch_start(self, *rest: Any) -> None:
        now = time.perf_counter()
        if not self.steps:
            self.reference, self.then = now - self.then, now

    def on_train_batch_end(self, *rest: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.then)
        self.then = now

"""What a training step costs: `python -m tests.bench.train [--steps 12]`. Draws 16 groups of 32 first (seconds).

1. samples/s of a plain loop (tensors in memory, policy and a second copy as reference forward, backward, AdamW)
2. the same arithmetic through GPOModule and Lightning (`reference: frozen`), and with stored reference errors
3. groups/s of our reader against wds.WebDataset on the same shards; share of the step time spent waiting for data

Everything in one process, one after the other, twice in turn; medians of the steps after the first two.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import webdataset as wds
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from gpo_data import hardware, recipe
from gpo_data.generation.generate import draw
from gpo_data.lake import catalog
from gpo_data.lake.reader import Reader, TrainGroup
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.models import resolve
from gpo_train.data import GroupDataModule
from gpo_train.fit import load_for_training, make_trainer
from gpo_train.lightning_fixes import quiet
from gpo_train.module import GPOModule
from gpo_train.noise import epoch_noise
from gpo_train.objectives.group import group_loss
from gpo_train.policy import Policy
from gpo_train.run import Run
from gpo_train.settings import train_settings

RECIPE = Path(__file__).parents[2] / "recipes" / "text-tiny.yaml"


class Steps(Callback):
    """Seconds of each whole step, and of waiting for its batch."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.waits: list[float] = []
        self.began = self.ended = time.perf_counter()

    def on_train_batch_start(self, *rest: Any) -> None:
        self.began = time.perf_counter()
        self.waits.append(self.began - self.ended)

    def on_train_batch_end(self, *rest: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.ended)
        self.ended = now


def plain_loop(made: recipe.Recipe, groups: list[TrainGroup], steps: int) -> list[float]:
    settings = train_settings(made)
    half = settings.precision == "bfloat16"
    model = load_for_training(made, settings, resolve(made.model))
    policy: torch.nn.Module = model.denoiser
    seconds = []
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate)
    for step in range(steps):
        started = time.perf_counter()
        group = groups[step % len(groups)]
        draws = epoch_noise(model, settings, 0, 0, group)
        assert isinstance(group.latents, torch.Tensor) and isinstance(draws.e, torch.Tensor)
        k, n = draws.u.shape
        x_0, e, t = group.latents.float().repeat(k, 1, 1, 1), draws.e.flatten(0, 1), model.time(draws.u).flatten()
        conditioning = {name: v.float().expand(k * n, *v.shape) for name, v in group.conditioning.items()}
        x_t, y = model.noise(x_0, e, t), model.target(x_0, e, t)
        errors = []
        for network in (policy, reference):
            with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.set_grad_enabled(network is policy):
                said = model.predict(x_t, t, conditioning, network)
            errors.append(((y - said.float()) ** 2).flatten(1).mean(1).view(k, n))
        s = (errors[0] - errors[1]).double()
        loss = torch.stack([group_loss(row, group.advantages) for row in s]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - started)
    return seconds


def ours(made: recipe.Recipe, reader: Reader, folder: Path, steps: int) -> Steps:
    settings = train_settings(made)
    policy = Policy(load_for_training(made, settings, resolve(made.model)), settings)
    module = GPOModule(policy, settings, 0, folder)
    data = GroupDataModule(lambda epoch: reader, settings, 0)
    watch = Steps()
    trainer: L.Trainer = make_trainer(made, settings, Run(folder), [watch], Console())
    trainer.fit_loop.epoch_loop.max_steps = steps
    trainer.fit(module, datamodule=data)
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args().steps
    quiet()
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        shared = ["--lake", f"{temporary}/lake", "--task.num_prompts", "16", "--train.checkpoint_steps", "100000"]
        made = recipe.load(RECIPE, shared)
        draw(made, Console(quiet=True))
        reader = Reader(made.lake, take_snapshot(catalog.connect(made.lake), str(made.name)))
        groups = [reader[i] for i in range(len(reader))]
        rates: dict[str, list[float]] = {"plain loop": [], "ours, frozen copy": [], "ours, stored errors": []}
        waits = []
        for turn in range(2):
            rates["plain loop"] += plain_loop(made, groups, steps)[2:]
            for name, reference in (("ours, frozen copy", "frozen"), ("ours, stored errors", "stored")):
                one = recipe.load(RECIPE, [*shared, "--train.reference", reference])
                watch = ours(one, reader, Path(temporary) / f"{reference}{turn}", steps)
                rates[name] += watch.steps[2:]
                waits.append(sum(watch.waits[2:]) / sum(watch.steps[2:]))
        samples = made.group_size * train_settings(made).timesteps_per_image
        plain = statistics.median(rates["plain loop"])
        for name, seconds in rates.items():
            middle = statistics.median(seconds)
            print(f"{name:<22}{samples / middle:7.1f} samples/s  x {plain / middle:.2f} of the plain loop")
        print(f"waiting for data      {100 * statistics.median(waits):7.2f}% of a step")
        tars = sorted(str(p) for p in Path(temporary).glob("lake/*/shard-*.tar"))
        started = time.perf_counter()
        count = sum(1 for _ in wds.WebDataset(tars, shardshuffle=False))
        theirs = count / (time.perf_counter() - started)
        started = time.perf_counter()
        for index in range(len(reader)):
            reader[index]
        mine = len(reader) / (time.perf_counter() - started)
        print(hardware.describe("cpu", train_settings(made).precision))
        print(
            f"reading               {mine:7.0f} groups/s, wds.WebDataset {theirs:.0f} undecoded: x {mine / theirs:.2f}"
        )


if __name__ == "__main__":
    main()

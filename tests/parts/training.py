"""What the tests of training share: a run of a recipe, its weights, and a policy that has moved."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from gpo_data import models, recipe
from gpo_data.lake import catalog
from gpo_data.lake.reader import Reader
from gpo_data.lake.snapshot import take_snapshot
from gpo_train.checkpoint import newest
from gpo_train.fit import fit
from gpo_train.module import GPOModule
from gpo_train.policy import Policy
from gpo_train.run import Run
from gpo_train.settings import train_settings


def train(path: Path, *overrides: str, name: str = "a") -> Run:
    return fit(recipe.load(path, overrides), name, Console(quiet=True))


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return load_file(next(run.policy.rglob("*.safetensors")))


def newest_of(run: Run) -> Path | None:
    """The newest whole checkpoint."""
    return newest(run.folder / "checkpoints", Console(quiet=True))


def steps_of(run: Run) -> int:
    """Optimiser steps in the newest checkpoint, which holds plain values and tensors alone."""
    path = newest_of(run)
    assert path is not None
    return int(torch.load(path, weights_only=True)["global_step"])


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def reader_of(path: Path) -> Reader:
    made = recipe.load(path)
    return Reader(made.lake, take_snapshot(catalog.connect(made.lake), "small"))


def moved(path: Path, *overrides: str, by: float = 1e-2) -> Policy:
    """A policy some way from the base, so that s is not 0."""
    made = recipe.load(path, overrides)
    torch.manual_seed(0)
    policy = Policy(models.load(Path(made.model), made.sampler), train_settings(made))
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(by * torch.randn_like(parameter))
    return policy


def module_of(path: Path, folder: Path, *overrides: str) -> GPOModule:
    """The module of such a policy, with `folder` for its run."""
    return GPOModule(moved(path, *overrides, by=1e-3), train_settings(recipe.load(path, overrides)), 0, folder)

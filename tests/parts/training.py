"""What the tests of training share: a run of a recipe, and its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from gpo_data import recipe
from gpo_data.lake import catalog
from gpo_data.lake.reader import Reader
from gpo_data.lake.snapshot import take_snapshot
from gpo_train.checkpoint import newest
from gpo_train.fit import fit
from gpo_train.run import Run


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

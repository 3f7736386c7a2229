"""Policies of chosen steps: kept whole, whatever kills the run on the way."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from gpo_data import recipe
from gpo_train.fit import fit
from gpo_train.points import folder_of
from gpo_train.run import Run
from tests.conftest import killed_at
from tests.parts.training import equal, weights_of


def test_a_run_killed_on_the_way_keeps_what_one_never_killed_keeps(here: Path) -> None:
    made = recipe.load(here, ["--train.epochs", "1", "--train.ema_decay", "0.5"])

    def train(name: str) -> Run:
        return fit(made, name, Console(quiet=True), points=[1, 2, 3, 9])

    whole = train("whole")
    for step in (1, 2):
        with killed_at(step):
            train("killed")
    killed = train("killed")
    for step in (1, 2, 3):
        assert equal(weights(whole, step), weights(killed, step))
    assert not equal(weights(whole, 1), weights(whole, 2))
    assert equal(weights(whole, 3), weights_of(whole))  # the average, as what is evaluated
    assert not folder_of(whole, 9).exists()  # the run has three steps
    assert (whole.manifest().peak_memory or 0) > 1e8


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(next(folder_of(run, step).rglob("*.safetensors")))

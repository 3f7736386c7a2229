"""A small online run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from rich.console import Console

from gpo_data import recipe
from gpo_train.fit import fit
from gpo_train.run import Run
from tests.conftest import RECIPE

TRAIN = """
train: {tuning: full, timesteps_per_image: 2, num_inner_epochs: 1, groups_per_step: 2, learning_rate: 1.0e-4,
        precision: float32,
        checkpoint_steps: 1, loggers: [csv], trainer: {enable_progress_bar: false}}
online: {iterations: 3, grid_every: 0}
"""


def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture
def here(tmp_path: Path, random_sd3: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a lake and runs/ of the test's own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(model=random_sd3, lake="lake").replace("num_prompts: 6", "num_prompts: 4") + TRAIN)
    return path


def online(path: Path, *overrides: str, name: str = "a") -> Run:
    return fit(recipe.load(path, overrides), name, quiet(), "online")


def tars(name: str) -> list[bytes]:
    return [p.read_bytes() for p in sorted(Path(f"lake/dataset={name}").glob("*.tar"))]


def losses(run: Run) -> list[str]:
    with (run.folder / "logs/csv/metrics.csv").open() as file:
        return [row["loss"] for row in csv.DictReader(file) if row.get("loss")]

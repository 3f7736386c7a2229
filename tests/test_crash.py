"""Killed at random moments and resumed equals never killed, byte for byte; two processes on one dataset do no harm."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import RECIPE
from tests.parts.lives import lives


def draw_once(recipe_file: str, lake: str) -> None:
    import torch
    from rich.console import Console

    from gpo_data import recipe
    from gpo_data.generation.generate import draw

    torch.set_num_threads(1)
    draw(recipe.load(recipe_file, ["--lake", lake]), Console(quiet=True))


def shard_bytes(lake: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((lake / "dataset=small").glob("shard-*"))}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, random_sd3: Path) -> Path:
    """A recipe of 6 groups of 4 in 3 shards."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE.format(model=random_sd3, lake="lake"))
    return path


@pytest.fixture(scope="module")
def unbroken(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """The bytes of a run that nothing stops, and how long it takes once the imports are done."""
    folder = tmp_path_factory.mktemp("unbroken")
    for lake in ("warm", "whole"):
        process = lives().Process(target=draw_once, args=(str(recipe_file), str(folder / lake)))
        started = time.monotonic()
        process.start()
        process.join(600)
        assert process.exitcode == 0
    return shard_bytes(folder / "whole"), time.monotonic() - started


def kill_and_resume(recipe_file: Path, lake: Path, seconds: float, kills: int, seed: int) -> None:
    rng, killed = np.random.default_rng(seed), 0
    while killed < kills:
        process = lives().Process(target=draw_once, args=(str(recipe_file), str(lake)))
        process.start()
        process.join(float(rng.uniform(0.2, 1.0)) * seconds)
        if process.is_alive():
            process.kill()  # which may have ended just now
            killed += 1
        process.join()
        if len(list((lake / "dataset=small").glob("shard-*.parquet"))) == 3:
            # Finished early: lose a committed shard's commit or some staged work, and go on killing.
            victim = sorted((lake / "dataset=small").glob("shard-*.parquet"))[int(rng.integers(3))]
            victim.unlink()
    process = lives().Process(target=draw_once, args=(str(recipe_file), str(lake)))
    process.start()
    process.join(600)
    assert process.exitcode == 0


def test_killed_three_times(recipe_file: Path, tmp_path: Path, unbroken: tuple[dict[str, bytes], float]) -> None:
    kill_and_resume(recipe_file, tmp_path / "lake", unbroken[1], kills=3, seed=0)
    assert shard_bytes(tmp_path / "lake") == unbroken[0]


@pytest.mark.slow
def test_killed_fifty_times(recipe_file: Path, tmp_path: Path, unbroken: tuple[dict[str, bytes], float]) -> None:
    from gpo_data.lake.verify import verify

    kill_and_resume(recipe_file, tmp_path / "lake", unbroken[1], kills=50, seed=1)
    assert shard_bytes(tmp_path / "lake") == unbroken[0]
    assert not [p for p in verify(tmp_path / "lake" / "dataset=small").problems if "stale" not in p[1]]


def test_two_processes_on_one_dataset(
    recipe_file: Path, tmp_path: Path, unbroken: tuple[dict[str, bytes], float]
) -> None:
    pair = [lives().Process(target=draw_once, args=(str(recipe_file), str(tmp_path / "lake"))) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(600)
    assert [p.exitcode for p in pair] == [0, 0]
    assert shard_bytes(tmp_path / "lake") == unbroken[0]

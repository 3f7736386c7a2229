"""Rules that stop an online run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gpo_data.recipe import Online
from gpo_train import cli
from gpo_train.online.guards import reason_to_stop
from gpo_train.online.iterations import Summary
from gpo_train.run import Run
from tests.parts.online import here as here


def test_guards_stop_and_say_why(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Summary(0, 4, 0, 16, reward=0.5, diversity=1.0, seconds={}, entropy=2.0, dark_fraction=0.001)
    assert reason_to_stop([one, one], Online()) is None
    later = dataclasses.replace(one, reward=0.4, diversity=0.5, entropy=1.0, dark_fraction=0.01, distance=0.2)
    for rule, said in (
        ({"stop_plateau": 1}, "of iteration 0"),
        ({"stop_diversity": 0.6}, "0.50 of the first"),
        ({"stop_drift": 0.3}, "entropy went from 2.000 to 1.000"),
        ({"stop_distance": 0.1}, "0.2000 above"),
    ):
        assert said in str(reason_to_stop([one, later], Online(**rule)))  # type: ignore[arg-type]
        assert reason_to_stop([one], Online(**rule)) is None  # type: ignore[arg-type]
    arguments = ["fit", str(here), "--mode", "online", "--online.stop_diversity", "5"]
    assert cli.main(arguments) == 0
    assert "stopping: online.stop_diversity: 5" in capsys.readouterr().out
    run = Run(Path("runs/small-online"))
    assert (
        run.manifest().state == "finished"
        and run.manifest().steps == 0
        and "diversity" in str(run.manifest().stopped_by)
    )

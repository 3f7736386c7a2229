"""Which rank a process is, by the variables of whoever started it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from gpo_data.errors import UsageError
from gpo_train import launcher
from tests.parts.training import train

TWO = {"num_nodes": 2}
ENV = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
ELASTIC = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0"}
SLURM = {
    "SLURM_JOB_NAME": "x",
    "SLURM_NTASKS": "6",
    "SLURM_NTASKS_PER_NODE": "3",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in (*ENV, *ELASTIC, *SLURM):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.mark.parametrize(
    "variables, options, rank, local",
    [
        ({}, TWO, 0, None),
        (ENV, TWO, 1, 0),
        (ENV | {"RANK": "5", "WORLD_SIZE": "6"}, TWO | {"devices": 3}, 5, 2),
        (ENV | {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1"}, TWO | {"devices": 3}, 5, 1),
        (ENV | ELASTIC, TWO, 1, 0),
        (SLURM, TWO | {"devices": 3}, 5, 2),
        (SLURM | {"LOCAL_RANK": "2"}, TWO | {"devices": 3}, 5, 2),
        (SLURM | {"SLURM_JOB_NAME": "bash"}, TWO | {"devices": 3}, 0, None),
        (ENV | {"RANK": "3"}, {}, 0, 0),
        (SLURM, {"devices": [1]}, 0, 0),
    ],
)
def test_a_process_is_the_rank_that_its_launcher_says(
    said: Any, variables: dict[str, str], options: dict[str, Any], rank: int, local: int | None
) -> None:
    said(variables)
    launcher.take_rank(options)
    assert launcher.rank() == rank
    found = launcher.environment(options)
    assert (found and found.local_rank()) == local
    assert not isinstance(found, SLURMEnvironment) or not found.auto_requeue


@pytest.mark.parametrize(
    "variables, options, told",
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "2", "expected MASTER_ADDR, MASTER_PORT, found none"),
        ({"SLURM_JOB_NAME": "x", "SLURM_NTASKS": "2"}, "2", "with srun, .*expected SLURM_PROCID, .* found none"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_NTASKS_PER_NODE"}, "2", "SLURM: .*ntasks-per-node"),
        (ENV, "3", "refuses: .*does not match the world size"),
        (SLURM, "3", "refuses: .*does not match.*devices=3"),
    ],
)
def test_what_does_not_go_with_a_launcher_is_named(
    said: Any, here: Path, variables: dict[str, str], options: str, told: str
) -> None:
    said(variables)
    nodes = ["--train.trainer.num_nodes", options, "--train.groups_per_step", "6"]
    with pytest.raises(UsageError, match=told):
        train(here, *nodes, "--train.trainer.strategy", "ddp")


def test_a_step_that_does_not_divide_is_refused_before_ranks_are_started(said: Any, here: Path) -> None:
    two = ["--train.trainer.devices", "2", "--train.trainer.accelerator", "cpu", "--train.trainer.strategy", "ddp"]
    with pytest.raises(UsageError, match="train.groups_per_step: 1 groups a step do not divide among 2 ranks"):
        train(here, "--train.groups_per_step", "1", *two)
    assert not Path("runs/a").exists()

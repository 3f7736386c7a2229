"""Training that is killed, signalled, damaged or on two ranks: it goes on, and ends where it would have ended."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from gpo_data import recipe
from gpo_data.errors import RunError, UsageError
from gpo_data.generation.plan import plan
from gpo_train import cli
from gpo_train.module import GPOModule
from gpo_train.online.iterations import write_prompts
from gpo_train.policy import Policy
from gpo_train.run import Run
from gpo_train.snapshot import drawn_otherwise
from tests.conftest import killed_at
from tests.parts.training import equal, newest_of, reader_of, steps_of, train, weights_of


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_killed_twice_equals_never_killed(here: Path, tuning: str) -> None:
    extra = ["--train.tuning", tuning, "--train.ema_decay", "0.5"]
    whole = train(here, *extra, name="whole")
    for step in (2, 4):  # in the middle of an epoch; in the second one
        with killed_at(step):
            train(here, *extra, name="broken")
    broken = train(here, *extra, name="broken")
    assert equal(weights_of(broken), weights_of(whole))
    logs = sorted((broken.folder / "logs/csv").glob("metrics*.csv"))
    steps = [int(row["step"]) for path in logs for row in csv.DictReader(path.read_text().splitlines()) if row["loss"]]
    assert len(logs) == 3 and sorted(steps) == list(range(6))


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        ["ddp"],
        ["fsdp2"],
        ["fsdp2", "--train.tuning", "lora"],
        ["fsdp2", "--train.reference", "frozen", "--train.reference_update", "iteration"],
        ["ddp", "--train.tuning", "lora", "--train.reference", "adapters", "--train.reference_update", "ema"],
        ["fsdp2", "--train.tuning", "lora", "--train.reference", "adapters", "--train.reference_update", "ema"],
        ["ddp", "--train.reference", "frozen", "--train.kl", "50", "--train.kl_judges", '["-dark_fraction"]'],
    ],
    ids=" ".join,
)
def test_two_ranks_end_where_one_does(here: Path, tmp_path: Path, extra: list[str]) -> None:
    alone = weights_of(train(here, *extra[1:], name="one"))
    command = [
        sys.executable,
        "-m",
        "gpo_train.cli",
        "fit",
        str(here),
        "--run",
        "two",
        "--train.trainer.devices",
        "2",
        "--train.trainer.accelerator",
        "cpu",
        "--train.trainer.strategy",
        *extra,
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    run = Run(tmp_path / "runs" / "two")
    with subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True) as process:
        while process.poll() is None and newest_of(run) is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert run.manifest().state == "training"
    subprocess.run(command, check=True, cwd=tmp_path, timeout=400, env=environment)
    assert run.manifest().ranks == 2
    for config in run.policy.rglob("config.json"):  # of full fine-tuning; a LoRA has none
        assert json.loads(config.read_text())["_class_name"] == "SD3Transformer2DModel"
    two = weights_of(run)
    for name in alone:
        torch.testing.assert_close(alone[name], two[name], rtol=1e-3, atol=3e-4)


def test_nan_stops_with_the_step_and_the_groups(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = Policy.errors
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "errors", lambda self, *a, **k: errors(self, *a, **k) * float("nan"))
        with pytest.raises(RunError, match=r"step 0: loss nan.*groups small/text-0000000"):
            train(here, name="nan")


def under_slurm(patch: pytest.MonkeyPatch, rank: int = 0, ranks: int = 1) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # Lightning sets the last two
        patch.setenv(name, "")
        patch.delenv(name)
    told = {"JOB_ID": 1, "JOB_NAME": "x", "NODELIST": "localhost", "NODEID": 0, "LOCALID": rank, "PROCID": rank}
    for name, value in (told | {"NTASKS": ranks}).items():
        patch.setenv(f"SLURM_{name}", str(value))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_step_in_flight_and_nothing_is_lost(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    step = GPOModule.training_step

    def signalled(self: Any, batch: Any, index: int) -> None:
        if self.global_step == 3:
            signal.raise_signal(number)
        step(self, batch, index)

    under_slurm(monkeypatch)
    command = ["fit", str(here), "--run", "signal", "--train.reference", "frozen"]
    with monkeypatch.context() as patch:
        patch.setattr(GPOModule, "training_step", signalled)
        assert cli.main(command) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    run = Run(Path("runs/signal"))
    assert steps_of(run) == 4 and not [*run.folder.rglob("hpc_ckpt*")]
    assert cli.main(command) == 0
    assert equal(weights_of(run), weights_of(train(here, "--train.reference", "frozen", name="whole")))


def test_what_slurm_had_lightning_save_hinders_no_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hpc_ckpt_1.ckpt.<digest>.ckpt` of gpo 0.2, of a run without a checkpoint of its own."""
    under_slurm(monkeypatch)
    with killed_at(0):
        train(here)
    Path("runs/a/hpc_ckpt_1.ckpt.0123456789abcdef.ckpt").write_bytes(b"x")
    assert train(here).manifest().state == "finished"


@pytest.mark.parametrize("launcher", ["SLURM", "env://"])
def test_a_run_of_one_device_is_its_own_first_rank(here: Path, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    """srun -n 4 bash -c 'gpo-train fit ... --run r$SLURM_PROCID'"""
    if launcher == "SLURM":
        under_slurm(monkeypatch, rank=3, ranks=4)
    else:
        for name, value in {"RANK": 3, "LOCAL_RANK": 3, "WORLD_SIZE": 4, "MASTER_ADDR": "nowhere"}.items():
            monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(rank_zero_only, "rank", 3)  # read from the environment when it was imported
    run = train(here, "--train.trainer.strategy", "ddp" if launcher == "SLURM" else "auto")
    if torch.distributed.is_initialized():  # its port is nobody else's while this process listens
        torch.distributed.destroy_process_group()
    assert run.manifest().ranks == 1 and (run.folder / "logs/csv/metrics.csv").is_file()
    rank_zero_only.rank = 3
    with run.claim(), pytest.raises(UsageError, match="another process trains it"):
        train(here)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_process_that_gets_a_signal_leaves_a_checkpoint(here: Path, tmp_path: Path, number: int) -> None:
    command = [
        sys.executable,
        "-m",
        "gpo_train.cli",
        "fit",
        str(here),
        "--run",
        "signal",
        "--train.epochs",
        "200",
        "--train.reference",
        "frozen",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        run = Run(tmp_path / "runs/signal")
        while newest_of(run) is None:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "the same command goes on from here" in said
    assert 0 < steps_of(run) < 400  # and it is a whole checkpoint


def test_what_a_refused_run_did_not_make_stays(here: Path) -> None:
    Path("runs/refused").mkdir(parents=True)
    Path("runs/refused/log.txt").write_text("mine")
    for name in ("refused", "new"):
        with pytest.raises(UsageError, match="all 6 groups are dead"):
            train(here, "--reward", "0.5", name=name)
    assert [path.name for path in Path("runs").iterdir()] == ["refused"]
    assert [path.name for path in Path("runs/refused").iterdir()] == ["log.txt"]


def test_what_is_missing_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(UsageError, match="train.loggers: wandb: its package is missing"):
        train(here, "--train.loggers", "[csv, wandb]", name="wandb")
    tar = Path(reader_of(here).places[0].parts[0].record.tar)
    step = GPOModule.training_step

    def and_lose_a_shard(self: Any, batch: Any, index: int) -> None:
        step(self, batch, index)
        tar.unlink(missing_ok=True)

    monkeypatch.setattr(GPOModule, "training_step", and_lose_a_shard)
    with pytest.raises(RunError, match=r"no such file, though its rows are committed: .* draw it again"):
        train(here, name="lost")


def test_what_a_frozen_dataset_was_not_drawn_with_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--group_size", "6", "--task.num_prompts", "9", "--seed", "1", "--train.epochs", "1"]
    assert cli.main(["fit", str(here), *asked]) == 0
    told = "group_size: 4 there, 6 in the recipe; task.num_prompts: 6 there, 9 in the recipe; `gpo-data shards`"
    assert f"warning: dataset small was drawn otherwise than the recipe says, and is trained on as it is: {told}" in (
        capsys.readouterr().out
    )
    assert cli.main(["fit", str(here), *asked, "--run", "named", "--train.datasets", "small"]) == 0
    assert "drawn otherwise" not in capsys.readouterr().out
    made = recipe.load(here)
    write_prompts([group.prompt for shard in plan(made) for group in shard.groups], Path("same.jsonl"))
    same = ["--task.prompts", "same.jsonl", "--task.num_prompts", "null", "--model", str(Path(made.model) / ".")]
    for overrides in ([], same):
        assert drawn_otherwise(recipe.load(here, overrides)) is None
    Path("same.jsonl").unlink()
    assert "task.prompts: None there, 'same.jsonl' in" in str(drawn_otherwise(recipe.load(here, same)))

"""A sweep's rows on a real Ray: of the command's own, and on a cluster of two nodes on this machine."""

from __future__ import annotations

import json
import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import gpo_data
from gpo_data import recipe
from gpo_data.errors import UsageError
from gpo_train import cli
from gpo_train.sweep.file import Sweep
from gpo_train.sweep.plan import Plan, read_plan
from gpo_train.sweep.processes import Job
from gpo_train.sweep.sweep import run_rows
from tests.parts.nodes import ENVIRONMENT, Nodes
from tests.parts.nodes import cluster as cluster

SWEEP = """
recipe: small.yaml
set: {train.epochs: 1, eval.prompts: 2}
rows:
  - {name: gpo}
  - {name: awm, set: {train.loss: awm}}
"""


@pytest.fixture
def sweep_file(here: Path) -> Path:
    path = here.with_name("losses.yaml")
    path.write_text(SWEEP)
    return path


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """What rows found, without what a clock or a meter says, and their policies."""
    found = {path.stem: json.loads(path.read_text()) for path in out.glob("rows/*.json")}
    for name, row in found.items():
        del row["seconds"], row["train_seconds"], row["peak_memory"], row["evaluation"]["train_seconds"]
        (weights,) = (out / "runs" / name / "policy").rglob("*.safetensors")
        row["policy"] = weights.read_bytes()
    return found


def test_jobs_are_run_and_what_they_exit_with_is_told(own_ray: None, tmp_path: Path, monkeypatch) -> None:
    from gpo_train.sweep.ray import on_ray

    monkeypatch.chdir(tmp_path)
    found: dict[str, int] = {}
    jobs = [Job(str(code), operator.index, (code,), Path(f"logs/{code}.log")) for code in (3, 0)]
    jobs.append(Job("killed", signal.raise_signal, (signal.SIGKILL,), Path("logs/killed.log")))  # type: ignore[arg-type]
    jobs.append(Job("said", print, ("here",), Path("logs/said.log")))  # type: ignore[arg-type]
    with on_ray(Plan(Sweep("small", "jobs"), [], recipe.Ray(workers=2))) as run:
        run(jobs, 2, lambda job, code: found.update({job.name: code}))
    assert found == {"3": 3, "0": 0, "killed": -signal.SIGKILL, "said": 0}
    assert Path("logs/said.log").read_text() == "here\n"


def test_what_the_command_line_says_of_ray_is_the_sweeps_and_not_its_rows(sweep_file: Path) -> None:
    plain, asked = read_plan(sweep_file), read_plan(sweep_file, ["--workers", "2", "--ray", "auto"])
    assert asked.rows == plain.rows and not plain.ray.wanted
    assert asked.ray == recipe.Ray(workers=2, address="auto")


def test_a_row_with_more_devices_takes_as_many(sweep_file: Path, own_ray: None) -> None:
    from gpo_train.sweep.ray import _gpus

    assert _gpus(read_plan(sweep_file)) == 0.0  # small.yaml is for the CPU
    for devices, gpus in ("2", 2.0), ("auto", 1.0):
        assert _gpus(read_plan(sweep_file, ["--sampler.device", "auto", "--train.trainer.devices", devices])) == gpus
    with pytest.raises(UsageError, match=r"train.trainer.devices: expected how many, .* found \[0, 3\]"):
        _gpus(read_plan(sweep_file, ["--sampler.device", "auto", "--train.trainer.devices", "[0, 3]"]))


def test_a_machine_that_does_not_see_the_sweep_says_so(tmp_path: Path, own_ray: None) -> None:
    from gpo_train.sweep.ray import _run

    job = Job("a", operator.index, (0,), Path("logs/a.log"))
    with pytest.raises(UsageError, match=r"ray: .* does not see .*/logs/a.log; .* file system that all of them share"):
        _run(job, tmp_path / "elsewhere", gpo_data.__version__)
    with pytest.raises(UsageError, match=r"and 0.0.1 where the command runs; install one version"):
        _run(job, tmp_path, "0.0.1")


@pytest.mark.slow
def test_on_ray_rows_find_what_processes_find(
    sweep_file: Path, tmp_path: Path, own_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    quiet = Console(quiet=True)
    assert run_rows(read_plan(sweep_file), tmp_path / "one", quiet) == 0
    assert cli.main(["sweep", str(sweep_file), "--workers", "2"]) == 0
    assert rows_of(tmp_path / "sweeps/losses") == rows_of(tmp_path / "one") != {}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_stopped_goes_on(sweep_file: Path, tmp_path: Path, number: int) -> None:
    sweep_file.write_text(SWEEP.replace("train.epochs: 1", "train.epochs: 40"))
    out = tmp_path / "sweeps/losses"
    command = [sys.executable, "-m", "gpo_train.cli", "sweep", str(sweep_file), "--workers", "2"]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True, **piped) as process:
        until = time.monotonic() + 300
        while len(list(out.glob("runs/*/checkpoints/*"))) < 2:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        said = process.communicate(timeout=300)[0]
    assert process.returncode == (130 if number != signal.SIGKILL else -number), said
    assert not list(out.glob("rows/*.json"))
    logs = list(out.glob("logs/losses-*.log"))
    assert len(logs) == 2 and (number == signal.SIGKILL or "the same command goes on from here" in said)
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, timeout=400, **piped)
    assert done.returncode == 0, done.stdout
    assert len(rows_of(out)) == 2 and all("resuming" in log.read_text() for log in logs)


@pytest.mark.slow
def test_on_a_cluster_whose_node_dies(
    sweep_file: Path, tmp_path: Path, cluster: Callable[..., Nodes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_file.write_text(SWEEP.replace("train.epochs: 1", "train.epochs: 40"))
    nodes, out = cluster(1, 1), tmp_path / "sweeps/losses"
    command = [sys.executable, "-m", "gpo_train.cli", "sweep", str(sweep_file), "--ray", nodes.address]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, **piped) as process:
        until = time.monotonic() + 300
        while len(list(out.glob("runs/*/checkpoints/*"))) < 2:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        nodes.kill_last()
        said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    assert len(rows_of(out)) == 2
    assert sum("resuming" in log.read_text() for log in out.glob("logs/losses-*.log")) == 1

"""Training on two nodes of one rank each: two launchers of torch on loopback, as SLURM or a person would start them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console

from gpo_data import recipe
from gpo_train.fit import fit
from gpo_train.run import Run
from tests.conftest import killed_at
from tests.parts.serving import free_port
from tests.parts.session import kill, session_of
from tests.parts.training import newest_of, steps_of, train, weights_of

pytestmark = pytest.mark.slow
FAILED_WITHIN = 60  # seconds after a rank has died until all have ended


@contextmanager
def two_nodes(path: Path, *options: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Both launchers, with what they say on their stdout."""
    port = free_port()
    names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")
    environment = {k: v for k, v in os.environ.items() if k not in names} | {"OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        found = []
        for node in range(2):
            launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
            launcher += ["--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", str(port)]
            command = ["-m", "gpo_train.cli", "--", "fit", str(path), "--run", "two"]
            command += ["--train.trainer.num_nodes", "2", "--train.trainer.accelerator", "cpu", *options]
            found.append(
                stack.enter_context(session_of([sys.executable, *launcher, *command], environment, path.parent))
            )
        yield found


@contextmanager
def two_ranks(path: Path, launcher: str, *options: str, apart: bool = False) -> Iterator[list[subprocess.Popen[str]]]:
    """Without torchrun, as another launcher starts them; `apart`: each node has a runs/ of its own."""
    port = str(free_port())
    command = [sys.executable, "-m", "gpo_train.cli", "fit", str(path), "--run", "two", *options]
    for key, value in {"num_nodes": "2", "accelerator": "cpu", "strategy": "ddp"}.items():
        command += [f"--train.trainer.{key}", value]
    names = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE")
    environment = {k: v for k, v in os.environ.items() if k not in names} | {"OMP_NUM_THREADS": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with ExitStack() as stack:
        found = []
        for rank in map(str, range(2)):
            told = {"RANK": rank, "WORLD_SIZE": "2"}
            if launcher == "SLURM":
                told = {"JOB_ID": "1", "JOB_NAME": "x", "NODELIST": "localhost", "NNODES": "2", "NTASKS": "2"}
                told |= {"NTASKS_PER_NODE": "1", "PROCID": rank, "NODEID": rank, "LOCALID": "0"}
                told = {f"SLURM_{name}": value for name, value in told.items()}
            folder = path.parent / rank if apart and rank == "1" else path.parent
            folder.mkdir(exist_ok=True)
            found.append(stack.enter_context(session_of(command, environment | told, folder)))
        yield found


def until_first_checkpoint(run: Run, launchers: list[subprocess.Popen[str]]) -> None:
    until = time.monotonic() + 200
    while newest_of(run) is None:
        if time.monotonic() > until or any(one.poll() is not None for one in launchers):
            for one in launchers:
                kill(one)
            pytest.fail("no checkpoint:\n" + "\n".join(one.communicate()[0] for one in launchers))
        time.sleep(0.05)


def finished(path: Path, *options: str) -> str:
    with two_nodes(path, *options) as launchers:
        said = [one.communicate(timeout=300)[0] for one in launchers]
        assert [one.returncode for one in launchers] == [0, 0], "\n".join(said)
    return said[0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_nodes_end_where_one_rank_does(here: Path, strategy: str) -> None:
    alone, run = weights_of(train(here, name="one")), Run(here.parent / "runs" / "two")
    options = ("--train.trainer.strategy", strategy)
    with two_nodes(here, *options) as launchers:
        until_first_checkpoint(run, launchers)
        for one in launchers:
            kill(one)
    assert run.manifest().state == "training"
    finished(here, *options)
    assert run.manifest().ranks == 2
    two = weights_of(run)
    for name in alone:
        torch.testing.assert_close(alone[name], two[name], rtol=1e-3, atol=3e-4)


def test_two_nodes_draw_and_train_as_one_rank_does(here: Path) -> None:
    one = fit(recipe.load(here, ["--online.iterations", "2"]), "one", Console(quiet=True), "online")
    alone, run = weights_of(one), Run(here.parent / "runs" / "two")
    options = ("--mode", "online", "--online.iterations", "2", "--train.trainer.strategy", "ddp")
    with two_nodes(here, *options) as launchers:
        until_first_checkpoint(run, launchers)
        for launcher in launchers:
            kill(launcher)
    finished(here, *options)
    tars = [[p.read_bytes() for p in sorted(Path("lake").glob(f"*{name}-it0000/*.tar"))] for name in ("one", "two")]
    assert tars[0] == tars[1] and len(tars[0]) == 3
    two = weights_of(run)
    for name in alone:
        torch.testing.assert_close(alone[name], two[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_other_with_a_word(here: Path, victim: int) -> None:
    run = Run(here.parent / "runs" / "two")
    long = ("--train.trainer.strategy", "ddp", "--train.epochs", "500")
    with two_nodes(here, *long) as launchers:
        until_first_checkpoint(run, launchers)
        (rank,) = psutil.Process(launchers[victim].pid).children()
        died = time.monotonic()
        rank.kill()
        said, _ = launchers[1 - victim].communicate(timeout=FAILED_WITHIN)
        assert time.monotonic() - died < FAILED_WITHIN
        assert launchers[1 - victim].returncode != 0
    assert "another rank has ended, so this one does" in said, said
    assert "Traceback" not in said.partition("another rank")[0], said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_machine_that_stands_still_ends_the_other_with_a_word(here: Path, victim: int) -> None:
    """As one that loses power: no connection is closed."""
    run = Run(here.parent / "runs" / "two")
    long = ("--train.trainer.strategy", "ddp", "--train.epochs", "500")
    with two_nodes(here, *long) as launchers:
        until_first_checkpoint(run, launchers)
        (rank,) = psutil.Process(launchers[1 - victim].pid).children()
        machine = psutil.Process(launchers[victim].pid)
        for process in (machine, *machine.children()):
            process.suspend()
        rank.wait(timeout=FAILED_WITHIN)
        for process in (*machine.children(), machine):
            process.kill()
        said, _ = launchers[1 - victim].communicate(timeout=300)
        assert launchers[1 - victim].returncode != 0
    assert f"nothing new of rank {victim} (" in said and "the last checkpoint in" in said, said


@pytest.mark.parametrize("every", [100, 1], ids=["before the first step", "later"])
def test_reference_errors_that_one_rank_has_lost_are_computed_again(here: Path, every: int) -> None:
    alone, run = weights_of(train(here, name="one")), Run(here.parent / "runs" / "two")
    options = ("--train.trainer.strategy", "ddp", "--train.checkpoint_steps", str(every))
    stored = run.folder / "reference"
    with two_nodes(here, *options) as launchers:
        until = time.monotonic() + 200
        while len(list(stored.glob("epoch-0000.*"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        if every == 1:
            until_first_checkpoint(run, launchers)
        for one in launchers:
            kill(one)
    (stored / "epoch-0000.rank-1-of-2.safetensors").unlink()
    finished(here, *options)
    two = weights_of(run)
    for name in alone:
        torch.testing.assert_close(alone[name], two[name], rtol=1e-3, atol=3e-4)


@pytest.mark.parametrize("launcher", ["env://", "SLURM"])
def test_ranks_of_any_launcher_train_together_and_stop_before_their_time_is_over(here: Path, launcher: str) -> None:
    """SLURM sends SIGUSR1 to all processes of a job; those that read ahead are some."""
    run, options = Run(here.parent / "runs" / "two"), ["--train.workers", "1"]
    with two_ranks(here, launcher, *options) as ranks:
        until_first_checkpoint(run, ranks)
        for one in ranks:
            os.killpg(one.pid, signal.SIGUSR1)
        said = [one.communicate(timeout=200)[0] for one in ranks]
        assert [one.returncode for one in ranks] == [130, 130], "\n".join(said)
    assert run.manifest().state == "training" and 0 < steps_of(run) < 6
    with two_ranks(here, launcher, *options) as ranks:
        said = [one.communicate(timeout=300)[0] for one in ranks]
        assert [one.returncode for one in ranks] == [0, 0], "\n".join(said)
    assert run.manifest().ranks == 2 and run.manifest().steps == 6
    assert len(list((run.folder / "logs/csv").glob("metrics*.csv"))) == 2


@pytest.mark.parametrize("begun", [True, False])
def test_ranks_that_see_other_runs_say_so(here: Path, begun: bool) -> None:
    if begun:
        with killed_at(2):
            train(here, name="two")
    with two_ranks(here, "env://", apart=True) as ranks:
        said = [one.communicate(timeout=200)[0] for one in ranks]
        assert [one.returncode for one in ranks] == [1, 1], "\n".join(said)
    first = "step-00000002" if begun else "no checkpoint"
    for one in said:
        assert re.search(r"rank 1 \(.*\) sees other checkpoints than rank 0 .*: expected runs/ to be one", one), one
        assert re.search(rf"found {first}\S* of a run .* on rank 0 and no checkpoint of a run .* on rank 1", one), one
        assert "Traceback" not in one


def test_a_step_that_does_not_divide_among_ranks_is_refused_at_once(here: Path) -> None:
    with two_ranks(here, "env://", "--train.groups_per_step", "1") as ranks:
        said = [one.communicate(timeout=200)[0] for one in ranks]
    assert [one.returncode for one in ranks] == [2, 2], "\n".join(said)
    assert all("train.groups_per_step: 1 groups a step do not divide among 2 ranks" in one for one in said)

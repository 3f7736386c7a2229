"""A rank ends when the process that started it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.cases import TWO

RANK = """
import os, subprocess, sys, time
from gpo_data.lifeline import end_with_launcher

def go_on():
    if "LOCAL_RANK" not in os.environ:
        child = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=os.environ | {"LOCAL_RANK": "1"})
        print(child.pid, flush=True)
    time.sleep(60)

with end_with_launcher(grace=0):
    go_on()
"""


def ended(pid: int, within: float) -> bool:
    """Whether it ended by itself; it is killed if not."""
    try:
        process = psutil.Process(pid)
        process.wait(within)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        process.kill()
        return False
    return True


@pytest.mark.parametrize("started_by", ["Lightning", "torchrun", "torchrun, after a training"])
def test_a_rank_ends_with_the_process_that_started_it_if_that_is_ours(started_by: str) -> None:
    code = RANK
    if started_by == "torchrun":
        code = code.replace("os.environ |", "{'PATH': os.environ['PATH']} |")
    if started_by == "torchrun, after a training":
        code = code.replace("    go_on()\n", "    if 'LOCAL_RANK' in os.environ: go_on()\ngo_on()\n")
    environment = {k: v for k, v in os.environ.items() if k != "LOCAL_RANK"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        rank = int(launcher.stdout.readline())
        time.sleep(1)
        assert psutil.pid_exists(rank)
        launcher.kill()
    assert ended(rank, within=3) == (started_by == "Lightning")


@pytest.mark.slow
def test_a_rank_ends_whose_launcher_was_killed_before_they_met(here: Path) -> None:
    """It would wait for half an hour."""
    names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")
    environment = {k: v for k, v in os.environ.items() if k not in names} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gpo_train.cli", "fit", str(here), "--run", "two", *TWO]
    with subprocess.Popen(command, env=environment, start_new_session=True) as launcher:
        rank, until = None, time.monotonic() + 100
        while rank is None and time.monotonic() < until:
            assert launcher.poll() is None
            time.sleep(0.05)
            rank = next((p for p in psutil.Process(launcher.pid).children() if "fit" in p.cmdline()), None)
        launcher.send_signal(signal.SIGKILL)
    assert rank is not None and ended(rank.pid, within=60)

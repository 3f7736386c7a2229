"""A cluster of Ray on this machine, in a process of its own: tests/parts/cluster.py."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}


class Nodes:
    """A running tests/parts/cluster.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process, found = process, json.loads(process.stdout.readline())
        self.address, self.client = found["address"], found["client"]

    def kill_last(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        print("kill", file=self.process.stdin, flush=True)
        assert self.process.stdout.readline().strip() == "killed"


@pytest.fixture
def cluster() -> Iterator[Callable[..., Nodes]]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'gpo[ray]'")
    with contextlib.ExitStack() as stack:

        def start(*cores: int) -> Nodes:
            command = [sys.executable, "-m", "tests.parts.cluster", *map(str, cores)]
            here = Path(__file__).parents[2]
            piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            environment = ENVIRONMENT | {"PYTHONPATH": f"{here}:{Path.cwd()}", "JUDGE_SECONDS": "1"}
            process: Any = stack.enter_context(subprocess.Popen(command, cwd=here, env=environment, **piped))
            stack.callback(process.wait, 60)
            stack.callback(process.stdin.close)
            return Nodes(process)

        yield start

"""The process of an evaluator ends with their parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpo_data.evaluators.pool import Batch, Measure

PARENT = """
import time
from gpo_data.evaluators.pool import Pool
from tests.test_pool import load
if __name__ == "__main__":
    found = Pool(load, None, 1, 1)([(None, {})] * 4)
    print(*{row["pid"] for row in found}, flush=True)
    time.sleep(600)
"""


def load(settings: None, threads: int) -> Measure:
    def measure(batch: Batch) -> list[dict[str, int]]:
        return [{"pid": os.getpid()} for _ in batch]

    return measure


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert pids
    for _ in range(100):
        if not any(map(alive, pids)):
            return
        time.sleep(0.1)
    pytest.fail(f"{pids} outlived their parent")

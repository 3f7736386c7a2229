"""What tests of a real Ray share: a recipe with a quick judge, its commands, and what one process draws."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gpo_data import recipe
from gpo_data.generation.generate import draw
from gpo_data.lake.verify import verify
from tests.parts.nodes import ENVIRONMENT
from tests.parts.session import session_of

QUIET = Console(quiet=True)
JUDGE = """
import os
import time

import numpy as np


def bright(images, targets):
    time.sleep(float(os.environ.get("JUDGE_SECONDS", 0)))
    if "JUDGES" in os.environ:
        with open(os.path.join(os.environ["JUDGES"], str(os.getpid())), "a") as calls:
            calls.write(".")
    return [{"brightness": float(np.mean(image))} for image in images]


def deadly(images, targets):
    if any(target["target"] == "FATAL" for target in targets):
        os._exit(1)
    return [{"brightness": 0.0} for image in images]


bright.columns = deadly.columns = {"brightness": float}
"""


@pytest.fixture
def bright(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`recipe_file` with a quick evaluator of its own in the place of OCR."""
    monkeypatch.chdir(recipe_file.parent)
    monkeypatch.syspath_prepend(recipe_file.parent)
    Path("judge_of_ray.py").write_text(JUDGE)
    text = recipe_file.read_text().replace("evaluators: [ocr]", "evaluators: ['judge_of_ray:bright']")
    recipe_file.write_text(text[: text.index("reward:")] + "reward: brightness / 255\n")
    return recipe_file


def drawn(folder: Path) -> dict[str, bytes]:
    """Tars, and rows of sidecars, by name."""
    found = {path.name: path.read_bytes() for path in folder.glob("shard-*.tar")}
    return found | {path.name: repr(pq.read_table(path).to_pylist()).encode() for path in folder.glob("*.parquet")}


def command(path: Path, *options: str, verb: str = "shards", module: str = "gpo_data.cli") -> list[str]:
    return [sys.executable, "-m", module, verb, str(path), "--trust", *options]


def run(path: Path, *options: str, **kind: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(path, *options, **kind), env=ENVIRONMENT, timeout=400, capture_output=True, text=True, cwd=path.parent
    )


@contextlib.contextmanager
def begun(path: Path, *options: str, dataset: str = "*", **kind: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a session of its own, once it has committed a shard of the dataset."""
    with session_of(command(path, *options, **kind), ENVIRONMENT | {"JUDGE_SECONDS": "1"}, path.parent) as process:
        until = time.monotonic() + 200
        while not list(path.parent.glob(f"lake/dataset={dataset}/*.tar")) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.1)
        yield process


MANY = ("--task.num_prompts", "24", "--group_size", "3")  # 12 shards


@pytest.fixture
def one(bright: Path) -> dict[str, bytes]:
    """What one process draws."""
    found = drawn(draw(recipe.load(bright, [*MANY, "--lake", str(bright.parent / "plain")], trust=True), QUIET))
    assert len(found) == 24
    return found


def same(path: Path, one: dict[str, bytes]) -> bool:
    folder = path.parent / "lake" / "dataset=small"
    return drawn(folder) == one and not verify(folder).problems and not list((folder / ".stage").glob("*.sample"))


def workers_of(pid: int) -> list[psutil.Process]:
    """Those below a command or a cluster that draw."""
    return [one for one in psutil.Process(pid).children(recursive=True) if "ray::Worker" in " ".join(one.cmdline())]


def ended(processes: list[psutil.Process], seconds: float = 60) -> bool:
    assert processes
    return not psutil.wait_procs(processes, timeout=seconds)[1]

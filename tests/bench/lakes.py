"""What large lakes cost: `python -m tests.bench.lakes [--datasets 1 100 2000] [--members 1000000]`.

1. Lakes of many datasets of 3 shards of 2 groups of 4, with tars: questions to all and to one dataset, `audit` and
   `verify` of one, the snapshot that training freezes, the newest of as many runs. What is of one may not grow.
2. Datasets of many members, of 64 groups of 32 a shard, which all have one tar: connect, sql, advantages by SQL, a
   snapshot and opening it, an audit (both in memory, about 150 bytes a member).

Wall and CPU seconds of the first time, and the median of the following ones, each with a connection of its own. Aims:
connect and one-dataset questions under 0.5 s at 2,000 datasets; 10 million members standardised in under 1 s on 2
cores, 100 million in under 12 s within 4 GiB (`--memory`). Files go to a temporary folder, which is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from gpo_data import audit, hardware
from gpo_data.group import Group
from gpo_data.lake import catalog
from gpo_data.lake.reader import Reader
from gpo_data.lake.shard import commit, sidecar_path, tar_path
from gpo_data.lake.sidecar import read_rows
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.lake.stage import stage
from gpo_data.lake.verify import verify
from gpo_data.prompt import Prompt
from gpo_train.run import newest
from tests.bench.catalog import STANDARDISE, write_lake
from tests.parts.lake import COLUMNS, MANIFEST

PARTS = Path(__file__).parents[1] / "parts"
RECIPE = {"model": "tiny", "reward": "text_edit(target, ocr_text)", "task": {"kind": "text"}}
COUNT = "SELECT dataset, count(*), avg(reward) FROM members GROUP BY 1"


def seconds(call: Callable[[], object], repeats: int) -> str:
    """Wall and CPU seconds of the first call and, in the median, of the others."""
    gc.collect()
    gc.freeze()  # what the questions before have left is not looked at for garbage
    taken = []
    for _ in range(1 + repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    gc.unfreeze()
    again = [statistics.median(column) for column in zip(*taken[1:], strict=True)] or [float("nan")] * 2
    return "".join(f"{value:9.2f}" for value in (*taken[0], *again))


def table(what: str, questions: dict[str, Callable[[], object]], repeats: int) -> None:
    print(f"\n{what:44} first: wall, CPU     again: wall, CPU")
    for name, question in questions.items():
        print(f"  {name:40} {seconds(question, repeats)}", flush=True)
    print(f"  most memory so far: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def many_datasets(folder: Path, datasets: int, repeats: int) -> None:
    lake, runs = folder / "lake", folder / "runs"
    _drawn(lake, datasets)
    for number in range(datasets):
        (runs / f"r{number:04d}").mkdir(parents=True)
        made = json.loads((PARTS / "run-0.1.json").read_text())
        made["recipe"]["name"] = f"x{number}"
        (runs / f"r{number:04d}/run.json").write_text(json.dumps(made))
    path, one = str(lake), "d0000"
    table(
        f"{datasets:,} dataset(s), {3 * datasets:,} shards",
        {
            "sql over all": lambda: catalog.ask(path, COUNT),
            "groups of all": lambda: catalog.ask(path, "SELECT count(*), avg(std) FROM groups"),
            "shards of all": lambda: catalog.ask(path, "SELECT count(*), sum(failed) FROM shards"),
            "connect, one dataset": lambda: catalog.connect(path, one).close(),
            "sql --dataset": lambda: catalog.ask(path, COUNT, dataset=[one]),
            "audit of one": lambda: _audit(path, one),
            "verify of one": lambda: verify(lake / f"dataset={one}"),
            "snapshot of one": lambda: take_snapshot(catalog.connect(path, one), one),
            "newest of as many runs": lambda: newest("x0", "offline", runs),
        },
        repeats,
    )


def _audit(lake: str, dataset: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        audit.run(lake, dataset)


def _drawn(lake: Path, datasets: int) -> None:
    """One dataset, and copies of it."""
    first = lake / "dataset=d0000"
    (first / ".stage").mkdir(parents=True)
    for shard in range(3):
        groups = [_group(number, 4) for number in (2 * shard, 2 * shard + 1)]
        for group in groups:
            stage(first, group, "f00d")
        commit(first, shard, [group.key for group in groups], COLUMNS, "f00d")
    (first / "dataset.json").write_text(json.dumps(MANIFEST | {"recipe": RECIPE}))
    for number in range(1, datasets):
        shutil.copytree(first, lake / f"dataset=d{number:04d}", ignore=shutil.ignore_patterns(".stage"))


def _group(number: int, size: int) -> Group:
    key, read = f"text-{number:08d}", [("AB", "A", "", "AB")[member % 4] for member in range(size)]
    return Group(
        key,
        Prompt(key[5:], f"prompt {key}", {"target": "AB", "color": "red"}),
        list(range(size)),
        torch.zeros(size, 1, 2, 2),
        {"prompt_embeds": torch.zeros(1, 2)},
        [np.zeros((64, 64, 3), np.uint8)] * size,
        ["ok"] * size,
        measurements=[{"ocr_text": text} for text in read],
        rewards=[len(text) / 2 for text in read],
    )


def many_members(folder: Path, members: int, memory: str, repeats: int) -> None:
    lake, one = folder / f"members-{members}", folder / "one"
    (one / ".stage").mkdir(parents=True, exist_ok=True)
    stage(one, group := _group(0, 32), "f00d")
    commit(one, 0, [group.key], COLUMNS, "f00d")
    row = read_rows(sidecar_path(one, 0), ["offset", "size", "crc32"])[0]
    size = write_lake(lake, members, 64, (Path(str(tar_path(one, 0))), row["offset"], row["size"], row["crc32"]))
    (lake / "dataset=bench/dataset.json").write_text(json.dumps(MANIFEST | {"created": "t", "recipe": RECIPE}))
    path = str(lake)

    def standardise() -> None:
        con = catalog.connect(path, "bench", unsafe=True, copies=True)
        con.execute(f"SET memory_limit = '{memory}'")
        con.execute(STANDARDISE).fetchall()
        con.close()

    questions: dict[str, Callable[[], object]] = {
        "connect": lambda: catalog.connect(path, "bench", copies=True).close(),
        "sql over the lake": lambda: catalog.ask(path, COUNT),
        "sql --dataset": lambda: catalog.ask(path, COUNT, dataset=["bench"]),
        f"connect, standardise within {memory}": standardise,
        "snapshot, opened": lambda: Reader(path, take_snapshot(catalog.connect(path, "bench"), "bench")),
        "audit, its page and pictures": lambda: _audit(path, "bench"),
    }
    table(f"{members:,} members, {size / 1e6:,.0f} MB of sidecars", questions, repeats)
    shutil.rmtree(lake)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, nargs="*", default=[1, 100, 2000])
    parser.add_argument("--members", type=int, nargs="*", default=[1_000_000])
    parser.add_argument("--memory", default="4GiB", help="that DuckDB may take")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(hardware.describe("cpu", hardware.dtype_for("auto", "cpu")), f"{os.cpu_count()} cores")
    for datasets in options.datasets:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["GPO_SCRATCH"] = f"{folder}/scratch"
            many_datasets(Path(folder), datasets, options.repeats)
    for members in options.members:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["GPO_SCRATCH"] = f"{folder}/scratch"
            many_members(Path(folder), members, options.memory, options.repeats)


if __name__ == "__main__":
    main()

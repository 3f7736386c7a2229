"""What share of training waits for groups from an object store that answers after 100 ms.

    python -m tests.bench.store [seconds of latency]

A tiny lake is drawn, put into moto's server behind a proxy that waits before each request, and trained on for two
epochs without a cache. Waiting is what passes between a step's asking for its groups and having them: that of each
epoch's first step, before which nothing was read ahead, and that of all others.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from gpo_data import recipe
from gpo_data.generation.generate import draw
from gpo_data.lake.reader import Reader, TrainGroup
from gpo_data.lake.remote import place
from gpo_train.fit import fit
from tests.parts.s3 import Proxy, connected, make_bucket, server

DRAWN = [
    "--group_size",
    "4",
    "--groups_per_shard",
    "8",
    "--task.num_prompts",
    "48",
    "--sampler.num_inference_steps",
    "4",
]
TRAINED = ["--train.epochs", "2", "--train.num_inner_epochs", "1", "--train.timesteps_per_image", "2"]
TRAINED += ["--train.groups_per_step", "2", "--train.reference", "adapters", "--train.tuning", "lora"]


def main() -> None:
    latency = float(sys.argv[1]) if len(sys.argv) > 1 else 0.1
    waits, read = list[list[float]](), Reader.ahead  # of each epoch, by group

    def timed(self: Reader, indexes: Iterable[int]) -> Iterator[TrainGroup]:
        groups = read(self, indexes)
        waits.append([])
        while True:
            started = time.monotonic()
            group = next(groups, None)
            if group is None:
                return
            waits[-1].append(time.monotonic() - started)
            yield group

    Reader.ahead = timed  # type: ignore[method-assign]
    scratch = Path(tempfile.mkdtemp())
    with (
        server() as s3,
        Proxy(s3.port) as proxy,
        connected(proxy.url, scratch),
        tempfile.TemporaryDirectory() as folder,
    ):
        make_bucket(s3.url, "bench")
        here, there = str(Path(folder) / "lake"), "s3://bench/lake"
        made = recipe.load("text-tiny", [*DRAWN, *TRAINED, "--lake", here])
        console = Console(quiet=True)
        drawn = draw(made, console)
        for path in drawn.glob("[!.]*.*"):
            (place(there) / drawn.name / path.name).write_bytes(path.read_bytes())
        proxy.latency = latency
        for lake in (here, there):
            waits.clear()
            trained = recipe.load("text-tiny", [*DRAWN, *TRAINED, "--lake", lake])
            run = fit(trained, f"on-{len(lake)}", console, runs=Path(folder) / "runs")
            seconds = run.manifest().train_seconds or 0.0
            print(f"{lake:30} {seconds:6.1f} s of training", end="" if waits else "\n")
            if not waits:  # processes read a local lake
                continue
            first = sum(sum(epoch[:2]) for epoch in waits)
            others = [wait for epoch in waits for wait in epoch[2:]]
            print(
                f"; waiting: {first / seconds:.2%} in first steps, {sum(others) / seconds:.2%} in others, at most "
                f"{max(others):.3f} s for a group"
            )


if __name__ == "__main__":
    main()

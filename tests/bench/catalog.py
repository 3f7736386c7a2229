"""How fast the catalog is: `python -m tests.bench.catalog [--members 1000000 10000000] [--repeats 5]`.

1. Standardise rewards by group over synthetic members in sidecars of a realistic size (64 groups of 32 a shard, the
   columns of a text dataset). Aim: under 2 s for 10 million members on 2 cores; growth no worse than linear.
2. Rescore a dataset of 64 groups of 32 with another expression, connecting included. Aim: under 1 s.

Prints medians of wall and CPU time (on a busy machine CPU time over the cores is the fairer figure); the files go to
a temporary folder, which is removed.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpo_data.lake import catalog

GROUP_SIZE = 32
# The advantages of every member, reduced to one number so that what is timed is the query and not Python's copy.
STANDARDISE = """
    SELECT count(advantage), sum(abs(advantage))
    FROM (SELECT (reward - avg(reward) OVER members_of) / nullif(stddev_pop(reward) OVER members_of, 0) AS advantage
          FROM members WHERE status = 'ok' WINDOW members_of AS (PARTITION BY dataset, group_key))"""
WORDS = ["KITE", "OPEN", "ZEBRA", "MILK", "STOP", "LION", "WAVE", "CAFE"]


def write_lake(lake: Path, members: int, groups_per_shard: int, tar: tuple[Path, int, int, int] | None = None) -> int:
    """Sidecars of `members` members in one dataset; the bytes written.

    tar: one that every shard has for its own, and the offset, size and crc32 of the record in it that every group has.
    """
    folder = lake / "dataset=bench"
    folder.mkdir(parents=True)
    rng, total = np.random.default_rng(0), 0
    per_shard, vocabulary = groups_per_shard * GROUP_SIZE, pa.array(WORDS)
    for shard in range(math.ceil(members / per_shard)):
        n = min(per_shard, members - shard * per_shard)
        mine = np.arange(n) // GROUP_SIZE
        group = shard * groups_per_shard + mine
        names = range(int(group[0]), int(group[-1]) + 1)  # text is made once a group
        word = group % len(WORDS)
        read = np.where(rng.random(n) < 0.4, word, rng.integers(len(WORDS), size=n))
        table = pa.table(
            {
                "group_key": pa.array([f"text-{g:08d}" for g in names]).take(mine),
                "prompt_id": pa.array([f"{g:012x}" for g in names]).take(mine),
                "prompt": pa.array([f'a red sign that says "{w}"' for w in WORDS]).take(word),
                "target": vocabulary.take(word),
                "color": pa.array(["red"] * n),
                "member": pa.array(np.arange(n) % GROUP_SIZE, pa.int32()),
                "seed": rng.integers(0, 2**62, n),
                "ocr_text": vocabulary.take(read),
                "ocr_confidence": rng.random(n),
                "entropy": rng.random(n),
                "edge_density": rng.random(n),
                "dark_fraction": rng.random(n),
                "reward": np.round(rng.random(n) * 4) / 4,
                "status": pa.array(["ok"] * n),
                "tar": pa.array([f"shard-{shard:06d}.tar"] * n),
                "offset": group * 700_000 if tar is None else np.full(n, tar[1]),
                "size": np.full(n, 700_000 if tar is None else tar[2]),
                "crc32": group * 2654435761 % 2**32 if tar is None else np.full(n, tar[3]),
            }
        )
        if tar is not None:
            os.link(tar[0], folder / f"shard-{shard:06d}.tar")
        path = folder / f"shard-{shard:06d}.parquet"
        footer = {"tar_bytes": "1", "tar_sha256": "0", "fingerprint": "f00d"}
        pq.write_table(table.replace_schema_metadata(footer), path, compression="zstd")
        total += path.stat().st_size
    return total


def median(action: Callable[[], object], repeats: int) -> tuple[float, float]:
    """(wall, CPU of all threads) in seconds; the first call warms the file cache and is not counted."""
    action()
    wall, cpu = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        action()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return statistics.median(wall), statistics.median(cpu)


def standardise(members: int, groups_per_shard: int, repeats: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        size = write_lake(Path(folder), members, groups_per_shard)
        shards = math.ceil(members / groups_per_shard / GROUP_SIZE)
        opened, _ = median(lambda: catalog.connect(folder).close(), 3)
        con = catalog.connect(folder)
        seconds, cpu = median(lambda: con.execute(STANDARDISE).fetchall(), repeats)
        print(
            f"standardise {members:>10,} members in {shards} shards ({size / 1e6:.0f} MB): {seconds:.2f} s, "
            f"{cpu:.2f} s of CPU "
            f"(connect {opened:.2f} s)",
            flush=True,
        )
    return seconds


def rescore(repeats: int) -> float:
    def once() -> None:
        con = catalog.connect(folder)
        con = catalog.scored(con, "0.8 * text_edit(target, ocr_text) + 0.2 * text_exact(target, ocr_text)")
        con.execute("SELECT avg(mean), sum(dead::INT) FROM groups").fetchall()
        con.close()

    with tempfile.TemporaryDirectory() as folder:
        write_lake(Path(folder), 64 * GROUP_SIZE, 8)
        seconds, cpu = median(once, repeats)
    print(f"rescore 64 groups of {GROUP_SIZE} by another expression: {seconds:.3f} s, {cpu:.3f} s of CPU")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--groups-per-shard", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rescore(options.repeats)
    seconds = [standardise(members, options.groups_per_shard, options.repeats) for members in options.members]
    if len(seconds) > 1:
        first, last = options.members[0], options.members[-1]
        print(
            f"growth {first:,} to {last:,}: {seconds[-1] / seconds[0]:.1f} times for {last / first:.1f} times the rows"
        )


if __name__ == "__main__":
    main()

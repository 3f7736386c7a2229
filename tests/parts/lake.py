"""Small datasets: sidecars without tars, and one with pictures; an evaluator of their brightness."""

from __future__ import annotations

import json
from typing import ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gpo_data.group import Group
from gpo_data.lake.shard import commit
from gpo_data.lake.sidecar import sidecar_schema
from gpo_data.lake.stage import stage
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe

MANIFEST = {"name": "x", "fingerprint": "f00d", "fields": {"seed": 0}, "measured": {}, "recipe": {}, "versions": {}}


COLUMNS = {"target": pa.string(), "color": pa.string(), "ocr_text": pa.string()}


def rows_of(group: int, rewards: list[float | None], target: str = "AB") -> list[dict]:
    return [
        {
            "group_key": f"text-{group:08d}",
            "prompt_id": f"p{group}",
            "prompt": f"prompt {group}",
            "target": target,
            "color": None,
            "member": i,
            "seed": 100 * group + i,
            "ocr_text": "AB" if r == 1 else "AX",
            "reward": r,
            "status": "ok" if r is not None else "failed_evaluator",
            "status_reason": None if r is not None else "no picture",
            "tar": "shard-000000.tar",
            "offset": 0,
            "size": 10,
            "crc32": 7,
        }
        for i, r in enumerate(rewards)
    ]


def write_shard(folder: str, shard: int, rows: list[dict], columns: dict | None = None, files=None) -> None:
    footer = {"tar_sha256": "ab", "tar_bytes": "1024", "groups": "1", "group_size": "2", "schema_version": "1"}
    schema = sidecar_schema(columns or COLUMNS).with_metadata(footer | {"fingerprint": "f00d"})
    files = files or fsspec.filesystem("file")
    files.makedirs(folder, exist_ok=True)
    with files.open(f"{folder}/shard-{shard:06d}.parquet", "wb") as stream:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), stream)
    with files.open(f"{folder}/dataset.json", "wb") as stream:
        stream.write(json.dumps(MANIFEST | {"created": "t"}).encode())


def write_measure(folder, measure: str, shard: int, rows: list[dict]) -> None:
    (folder / "measures" / measure).mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"tar_sha256": "ab"})
    pq.write_table(table, folder / "measures" / measure / f"shard-{shard:06d}.parquet")


@pytest.fixture
def lake(tmp_path):
    write_shard(str(tmp_path / "dataset=a"), 0, rows_of(0, [0.0, 1.0]) + rows_of(1, [0.5, 0.5]))
    write_shard(str(tmp_path / "dataset=a"), 1, rows_of(2, [0.0, None, 1.0, 0.5]))
    return tmp_path


class Brightness:
    """An evaluator that a user might add; raises on the members in `broken`."""

    name, version = "brightness", "1 beta/2"
    columns: ClassVar = {"brightness": pa.float64()}

    def __init__(self) -> None:
        self.broken: set[int] = set()
        self.seen: list[int] = []

    def measure(self, images: list[np.ndarray], targets: list[dict]) -> list[dict]:
        self.seen += [int(image[0, 0, 0]) for image in images]
        if self.broken & {int(image[0, 0, 0]) for image in images}:
            raise ValueError("too dark")
        return [
            {"brightness": float(image.mean()) + len(target["target"])}
            for image, target in zip(images, targets, strict=True)
        ]


@pytest.fixture
def drawn(tmp_path):
    """A dataset of 3 shards of 2 groups of 4 members; picture m of group g is uniformly 10 g + m; one has none."""
    folder = tmp_path / "dataset=text-x"
    (folder / ".stage").mkdir(parents=True)
    for g in range(6):
        lost = [g == 0 and m == 3 for m in range(4)]
        group = Group(
            key=f"text-{g:08d}",
            prompt=Prompt(f"p{g}", f"prompt {g}", {"target": "AB"}),
            seeds=[10 * g + m for m in range(4)],
            latents=torch.zeros(4, 1, 2, 2),
            conditioning={"prompt_embeds": torch.zeros(1, 2)},
            images=[None if lost[m] else np.full((8, 8, 3), 10 * g + m, np.uint8) for m in range(4)],
            statuses=["failed_evaluator" if x else "ok" for x in lost],
            reasons=["no picture" if x else None for x in lost],
            measurements=[{"ocr_text": "AB"}] * 4,
            rewards=[None if x else 1.0 for x in lost],
        )
        stage(folder, group, "f00d")
    columns = {"target": pa.string(), "ocr_text": pa.string()}
    for shard in range(3):
        commit(folder, shard, [f"text-{g:08d}" for g in (2 * shard, 2 * shard + 1)], columns, "f00d")
    (folder / "dataset.json").write_text(json.dumps(MANIFEST))
    return Recipe(name="text-x", lake=str(tmp_path), evaluators=["ocr"], reward="text_exact(target, ocr_text)")

"""The store: pack a shard of staged groups and commit it.

    dataset=<name>/shard-000012.tar        WebDataset, one sample a group, deterministic bytes
    dataset=<name>/shard-000012.parquet    the sidecar, one row a member; written last: its existence is the commit
    dataset=<name>/dataset.json            recipe, fingerprint, versions
    dataset=<name>/.stage/                 finished groups of shards not yet committed, and locks

A sample's bytes in the tar are the staged bytes, so packing is concatenation. Rows carry the sample's offset, size and
crc32; the sidecar's footer carries the tar's sha256. What does not match is never read as data.
"""

from __future__ import annotations

import hashlib
import io
import re
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpo_data.errors import RunError
from gpo_data.group import Group, from_sample
from gpo_data.lake.durable import write_atomic
from gpo_data.lake.sidecar import SCHEMA_VERSION, sidecar_schema
from gpo_data.lake.stage import END, staged, staged_path
from gpo_data.parts import open_archive


def dataset_folder(lake: str | Path, name: str) -> Path:
    return Path(lake) / f"dataset={name}"


def tar_path(folder: Path, shard_id: int) -> Path:
    return folder / f"shard-{shard_id:06d}.tar"


def sidecar_path(folder: Path, shard_id: int) -> Path:
    return folder / f"shard-{shard_id:06d}.parquet"


def sidecars(folder: Path) -> list[Path]:
    """The sidecars of all committed shards, in their order."""
    return sorted(path for path in folder.glob("shard-*.parquet") if re.fullmatch(r"shard-\d{6,}", path.stem))


def number_of(path: Path) -> int:
    """Of a tar or a sidecar."""
    return int(path.stem.removeprefix("shard-"))


def commit(folder: Path, shard_id: int, keys: list[str], columns: dict[str, pa.DataType], fingerprint: str) -> None:
    """Pack the staged groups `keys` into a tar, then write the sidecar, then clear the stage. Raises RunError."""
    tar = tar_path(folder, shard_id)
    blocks = []
    for key in keys:
        block = staged(folder, key, fingerprint)
        if block is None:
            raise RunError(f"{staged_path(folder, key)}: lost or damaged before its commit; run the same command again")
        blocks.append(block)
    rows, offset, group_size = [], 0, 0
    for block in blocks:
        group = from_sample(open_archive(block + END)[1], images=False)
        place = {"tar": tar.name, "offset": offset, "size": len(block), "crc32": zlib.crc32(block)}
        rows += [row | place for row in member_rows(group)]
        offset += len(block)
        group_size = group.size
    sha256 = hashlib.sha256()
    for block in [*blocks, END]:
        sha256.update(block)
    write_atomic(tar, *blocks, END)
    footer = {
        "tar_sha256": sha256.hexdigest(),
        "tar_bytes": offset + len(END),
        "groups": len(keys),
        "group_size": group_size,
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint,
    }
    write_atomic(sidecar_path(folder, shard_id), parquet_bytes(rows, sidecar_schema(columns), footer))
    for key in keys:
        staged_path(folder, key).unlink(missing_ok=True)


def member_rows(group: Group) -> list[dict[str, Any]]:
    """A group as the sidecar's rows, without the place in the tar."""
    prompt = group.prompt
    shared = {"group_key": group.key, "prompt_id": prompt.prompt_id, "prompt": prompt.text} | prompt.target
    reasons = group.reasons or [None] * group.size
    return [
        shared
        | {"member": i, "seed": seed, "reward": group.rewards[i]}
        | {"status": group.statuses[i], "status_reason": reasons[i]}
        | group.measurements[i]
        for i, seed in enumerate(group.seeds)
    ]


def parquet_bytes(rows: list[dict[str, Any]], schema: pa.Schema, footer: dict[str, Any]) -> bytes:
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata({k: str(v) for k, v in footer.items()}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()

"""A committed shard back on the stage, for its failed members to be tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gpo_data.lake.record import Record
from gpo_data.lake.shard import fsync_folder, pack_sample, sidecar_path, staged_path, tar_path, write_atomic
from gpo_data.status import OK


def reopen(folder: Path, shard_id: int) -> int:
    """Put a committed shard's good groups back on the stage and uncommit it; the number of failed members.

    The sidecar goes first and the tar last, so a kill in between leaves an unfinished shard, never a wrong one.
    """
    rows = pq.read_table(
        sidecar_path(folder, shard_id), columns=["group_key", "status", "tar", "offset", "size", "crc32"]
    )
    groups: dict[str, dict[str, Any]] = {}
    for row in rows.to_pylist():
        group = groups.setdefault(row["group_key"], row | {"failed": 0})
        group["failed"] += row["status"] != OK
    for key, g in groups.items():
        if not g["failed"]:
            sample = Record.of(g, folder).read()
            write_atomic(staged_path(folder, key), pack_sample(key, sample))
    sidecar_path(folder, shard_id).unlink()
    fsync_folder(folder)
    tar_path(folder, shard_id).unlink(missing_ok=True)
    return sum(g["failed"] for g in groups.values())

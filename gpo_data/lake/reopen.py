"""A committed shard back on the stage, for its failed members to be tried again."""

from __future__ import annotations

from typing import Any

from gpo_data.lake.durable import fsync_folder
from gpo_data.lake.record import PLACE, Record
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.shard import sidecar_path, tar_path
from gpo_data.lake.sidecar import read_rows
from gpo_data.lake.stage import stage_blocks
from gpo_data.status import OK


def reopen(folder: AnyPath, shard_id: int, fingerprint: str) -> int:
    """Put a committed shard's good groups back on the stage and uncommit it; the number of failed members.

    Whoever calls holds the shard's claim. The sidecar goes first and the tar last, so a kill in between leaves an
    unfinished shard, never a wrong one. Raises RunError.
    """
    groups: dict[str, dict[str, Any]] = {}
    for row in read_rows(sidecar_path(folder, shard_id), ["group_key", "status", *PLACE]):
        group = groups.setdefault(row["group_key"], row | {"failed": 0})
        group["failed"] += row["status"] != OK
    for key, g in groups.items():
        if not g["failed"]:
            record = Record.of(g, folder)
            record.group(images=False)  # what cannot be opened is not kept
            stage_blocks(folder, key, record.blocks(), fingerprint)
    sidecar_path(folder, shard_id).unlink()
    fsync_folder(folder)
    tar_path(folder, shard_id).unlink(missing_ok=True)
    sidecar_path(folder, shard_id).unlink(missing_ok=True)  # of another machine, which committed the tar in between
    return sum(g["failed"] for g in groups.values())

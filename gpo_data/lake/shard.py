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
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from gpo_data.errors import RunError
from gpo_data.group import Group, from_sample
from gpo_data.lake.durable import write_once
from gpo_data.lake.remote import AnyPath, is_shard, place
from gpo_data.lake.sidecar import SCHEMA_VERSION, sidecar_schema, written
from gpo_data.lake.stage import END, staged, staged_path
from gpo_data.parts import Damage, open_archive


def dataset_folder(lake: str | Path, name: str) -> AnyPath:
    """Raises UsageError where `lake` is no place of lakes."""
    return place(lake) / f"dataset={name}"


def tar_path(folder: AnyPath, shard_id: int) -> AnyPath:
    return folder / f"shard-{shard_id:06d}.tar"


def sidecar_path(folder: AnyPath, shard_id: int) -> AnyPath:
    return folder / f"shard-{shard_id:06d}.parquet"


def sidecars(folder: AnyPath) -> list[AnyPath]:
    """The sidecars of all committed shards, in their order."""
    return sorted(path for path in folder.glob("shard-*.parquet") if is_shard(path))


def number_of(path: AnyPath) -> int:
    """Of a tar or a sidecar."""
    return int(path.stem.removeprefix("shard-"))


def commit(folder: AnyPath, shard_id: int, keys: list[str], columns: dict[str, pa.DataType], fingerprint: str) -> bool:
    """Pack the staged groups `keys` into a tar, then write the sidecar, then clear the stage. Raises RunError.

    False where another machine has committed the shard first: on an object store nothing is written over.
    """
    blocks = []
    for key in keys:
        block = staged(folder, key, fingerprint)
        if block is None:
            raise RunError(f"{staged_path(folder, key)}: lost or damaged before its commit; run the same command again")
        blocks.append(block)
    tar, sidecar = tar_path(folder, shard_id), sidecar_path(folder, shard_id)
    if not write_once(tar, *blocks, END):
        blocks = _tar_of_another(tar, blocks)
    mine = write_once(sidecar, sidecar_bytes(tar.name, blocks, columns, fingerprint))
    if not tar.is_file():  # another machine took the shard back meanwhile, for its failed members
        sidecar.unlink(missing_ok=True)
        raise RunError(f"{tar}: taken away by another process before its commit; run the same command again")
    for key in keys:
        staged_path(folder, key).unlink(missing_ok=True)
    return mine


def sidecar_bytes(tar: str, blocks: list[bytes], columns: dict[str, pa.DataType], fingerprint: str) -> bytes:
    """The sidecar of a tar of these samples."""
    rows, offset, group_size = [], 0, 0
    for block in blocks:
        group = from_sample(open_archive(block + END), images=False)
        where = {"tar": tar, "offset": offset, "size": len(block), "crc32": zlib.crc32(block)}
        rows += [row | where for row in member_rows(group)]
        offset += len(block)
        group_size = group.size
    sha256 = hashlib.sha256()
    for block in [*blocks, END]:
        sha256.update(block)
    footer = {
        "tar_sha256": sha256.hexdigest(),
        "tar_bytes": offset + len(END),
        "groups": len(blocks),
        "group_size": group_size,
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint,
    }
    return parquet_bytes(rows, sidecar_schema(columns), footer)


def _tar_of_another(tar: AnyPath, ours: list[bytes]) -> list[bytes]:
    """The samples of a tar that another machine has put there, which stays: it may be about to commit it.

    The same groups from the same seeds, in another machine's arithmetic. Raises RunError for anything else.
    """
    other = f"{tar}: expected the shard's groups there, found others; `gpo-data verify RECIPE --repair` takes them away"
    content = tar.read_bytes()
    blocks, starts = [], dict[str, int]()
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for entry in archive:
                starts.setdefault(entry.name.partition(".")[0], entry.offset)
        ends = [*list(starts.values())[1:], len(content) - len(END)]
        blocks = [content[start:end] for start, end in zip(starts.values(), ends, strict=True)]
        for block, own in zip(blocks, ours, strict=True):
            found, mine = (from_sample(open_archive(b + END), images=False) for b in (block, own))
            if (found.key, found.prompt, found.seeds) != (mine.key, mine.prompt, mine.seeds):
                raise RunError(other)
    except (tarfile.TarError, ValueError, Damage):
        raise RunError(other) from None
    return blocks


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
    return written(pa.Table.from_pylist(rows, schema=schema.with_metadata({k: str(v) for k, v in footer.items()})))

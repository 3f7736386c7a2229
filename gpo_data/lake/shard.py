"""The store: stage groups, pack a shard, commit it, read it back.

    dataset=<name>/shard-000012.tar        WebDataset, one sample a group, deterministic bytes
    dataset=<name>/shard-000012.parquet    the sidecar, one row a member; written last: its existence is the commit
    dataset=<name>/dataset.json            recipe, fingerprint, versions
    dataset=<name>/.stage/                 finished groups of shards not yet committed, and locks

Every file is written under a temporary name in its own directory, flushed, fsynced, renamed, and its directory
fsynced. A sample's bytes in the tar are the staged bytes, so packing is concatenation. Rows carry the sample's
offset, size and crc32; the sidecar's footer carries the tar's sha256. What does not match is never read as data.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds

from gpo_data.errors import RunError
from gpo_data.group import Group, statuses_of, to_sample
from gpo_data.lake.sidecar import SCHEMA_VERSION
from gpo_data.lake.sidecar import sidecar_schema as sidecar_schema  # evaluators/build.py takes it from here

BLOCK = 512
END = bytes(2 * BLOCK)  # a tar ends with two empty blocks
TEMPORARY = ".tmp"


def dataset_folder(lake: str | Path, name: str) -> Path:
    return Path(lake) / f"dataset={name}"


def tar_path(folder: Path, shard_id: int) -> Path:
    return folder / f"shard-{shard_id:06d}.tar"


def sidecar_path(folder: Path, shard_id: int) -> Path:
    return folder / f"shard-{shard_id:06d}.parquet"


def sidecars(folder: Path) -> list[Path]:
    """The sidecars of all committed shards, in their order."""
    return sorted(folder.glob("shard-*.parquet"))


def staged_path(folder: Path, key: str) -> Path:
    return folder / ".stage" / f"{key}.sample"


def write_atomic(path: Path, *chunks: bytes) -> None:
    """Temporary name, flush, fsync, rename, fsync of the directory. A full disk leaves the old file or none."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(
            f"{path}: cannot write: {error.strerror}; the lake is valid as it is; free space or fix the folder "
            f"and run the same command again, it goes on where it stopped"
        ) from error
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pack_sample(key: str, sample: dict[str, bytes]) -> bytes:
    """One WebDataset sample as tar blocks, without the end of the archive."""
    buffer = io.BytesIO()
    with wds.TarWriter(buffer, encoder=False, mtime=0) as writer:  # mtime must be an int, or the bytes vary
        writer.write({"__key__": key} | sample)
    length = sum(BLOCK + -(-len(data) // BLOCK) * BLOCK for data in sample.values())
    return buffer.getvalue()[:length]


def unpack_sample(blocks: bytes) -> tuple[str, dict[str, bytes]]:
    """The inverse of `pack_sample`: (key, {extension: bytes})."""
    key, sample = "", {}
    with tarfile.open(fileobj=io.BytesIO(blocks + END), mode="r:") as archive:
        for entry in archive:
            key, _, extension = entry.name.partition(".")
            stream = archive.extractfile(entry)
            assert stream is not None
            sample[extension] = stream.read()
    return key, sample


def stage(folder: Path, group: Group) -> None:
    """Keep a finished group until its shard is whole."""
    write_atomic(staged_path(folder, group.key), pack_sample(group.key, to_sample(group)))


def commit(folder: Path, shard_id: int, keys: list[str], columns: dict[str, pa.DataType], fingerprint: str) -> None:
    """Pack the staged groups `keys` into a tar, then write the sidecar, then clear the stage."""
    tar = tar_path(folder, shard_id)
    blocks = [staged_path(folder, key).read_bytes() for key in keys]
    rows, offset, group_size = [], 0, 0
    for block in blocks:
        meta = json.loads(unpack_sample(block)[1]["group.json"])
        place = {"tar": tar.name, "offset": offset, "size": len(block), "crc32": zlib.crc32(block)}
        rows += [row | place for row in member_rows(meta)]
        offset += len(block)
        group_size = len(meta["seeds"])
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


def member_rows(meta: dict[str, Any]) -> list[dict[str, Any]]:
    """A group.json as the sidecar's rows, without the place in the tar."""
    statuses, reasons = statuses_of(meta)
    shared = {"group_key": meta["key"], "prompt_id": meta["prompt_id"], "prompt": meta["prompt"]} | meta["target"]
    return [
        shared
        | {"member": i, "seed": seed, "reward": meta["rewards"][i]}
        | {"status": statuses[i], "status_reason": reasons[i]}
        | meta["measurements"][i]
        for i, seed in enumerate(meta["seeds"])
    ]


def parquet_bytes(rows: list[dict[str, Any]], schema: pa.Schema, footer: dict[str, Any]) -> bytes:
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata({k: str(v) for k, v in footer.items()}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


@contextmanager
def claim(folder: Path, shard_id: int) -> Iterator[bool]:
    """Hold a shard for this process: yields False where another process draws it. The kernel frees it on a kill."""
    with (folder / ".stage" / f"shard-{shard_id:06d}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True

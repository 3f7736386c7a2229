"""The stage: finished groups of shards that are not committed yet, `.stage/<key>.sample`.

Of a dataset on an object store the folder is one of this machine (remote.py).

    one block of 512 bytes   JSON {"key", "fingerprint", "crc32"}, padded with spaces
    the rest                 the sample's bytes as they will be in the tar

What always holds: the stage is not trusted. What is cut, flipped, of another key or drawn under another fingerprint is
as if it were not there, and is drawn again.
"""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import webdataset as wds

from gpo_data.errors import RunError
from gpo_data.group import Group, from_sample, to_sample
from gpo_data.lake.durable import write_atomic
from gpo_data.lake.remote import AnyPath, stage_folder
from gpo_data.parts import Damage, open_archive

BLOCK = 512
END = bytes(2 * BLOCK)  # a tar ends with two empty blocks


def staged_path(folder: AnyPath, key: str) -> Path:
    return stage_folder(folder) / f"{key}.sample"


def pack_sample(key: str, sample: dict[str, bytes]) -> bytes:
    """One WebDataset sample as tar blocks, without the end of the archive."""
    buffer = io.BytesIO()
    with wds.TarWriter(buffer, encoder=False, mtime=0) as writer:  # mtime must be an int, or the bytes vary
        writer.write({"__key__": key} | sample)
    length = sum(BLOCK + -(-len(data) // BLOCK) * BLOCK for data in sample.values())
    return buffer.getvalue()[:length]


def stage(folder: AnyPath, group: Group, fingerprint: str) -> None:
    """Keep a finished group until its shard is whole. Raises RunError."""
    stage_blocks(folder, group.key, pack_sample(group.key, to_sample(group)), fingerprint)


def stage_blocks(folder: AnyPath, key: str, blocks: bytes, fingerprint: str) -> None:
    head = json.dumps({"key": key, "fingerprint": fingerprint, "crc32": zlib.crc32(blocks)}).encode()
    assert len(head) <= BLOCK
    write_atomic(staged_path(folder, key), head.ljust(BLOCK), blocks)


def staged(folder: AnyPath, key: str, fingerprint: str, seeds: list[int] | None = None) -> bytes | None:
    """The blocks of a staged group; None where it is not there, damaged, or not the group that is planned.

    Args:
        seeds: the members' noise seeds, as planned. Raises RunError where the file cannot be read at all.
    """
    path = staged_path(folder, key)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot read: {error.strerror}; remove it and run the same command again") from None
    blocks = data[BLOCK:]
    try:
        if json.loads(data[:BLOCK]) != {"key": key, "fingerprint": fingerprint, "crc32": zlib.crc32(blocks)}:
            return None
        sample = open_archive(blocks + END)
        group = from_sample(sample, images=False)
    except (Damage, ValueError):
        return None
    return blocks if sample.key == group.key == key and seeds in (None, group.seeds) else None

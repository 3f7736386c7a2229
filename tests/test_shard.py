"""The store: deterministic tars, damage is always detected, other tools read our shards."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gpo_data.errors import RunError
from gpo_data.group import from_sample, member_seed, to_sample
from gpo_data.lake.locks import claim
from gpo_data.lake.record import Record
from gpo_data.lake.reopen import reopen
from gpo_data.lake.repair import repair
from gpo_data.lake.shard import commit
from gpo_data.lake.stage import stage
from gpo_data.lake.verify import verify
from tests.parts.shard import COLUMNS, MANIFEST, make_group


def commit_two(folder: Path) -> None:
    (folder / ".stage").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(MANIFEST))
    for index in range(2):
        stage(folder, make_group(index), "f")
    commit(folder, 0, ["text-00000000", "text-00000001"], COLUMNS, "f")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "dataset=x"
    commit_two(path)
    return path


def test_a_group_survives_its_bytes() -> None:
    group = make_group(7)
    again = from_sample(to_sample(group))
    assert again.prompt == group.prompt and again.seeds == group.seeds and again.rewards == group.rewards
    assert torch.equal(again.latents, group.latents)
    assert all(np.array_equal(a, b) for a, b in zip(again.images, group.images, strict=True))


def test_seeds_are_63_bits_and_differ() -> None:
    seeds = {member_seed(s, "text", p, m) for s in (0, 1) for p in ("a", "b") for m in range(100)}
    assert len(seeds) == 400 and all(0 <= s < 2**63 for s in seeds)


def test_same_groups_same_bytes(tmp_path: Path, folder: Path) -> None:
    commit_two(tmp_path / "dataset=y")
    for name in ("shard-000000.tar", "shard-000000.parquet"):
        assert (folder / name).read_bytes() == (tmp_path / "dataset=y" / name).read_bytes()


def test_commit_clears_the_stage_and_verifies(folder: Path) -> None:
    assert not list((folder / ".stage").glob("*.sample"))
    report = verify(folder)
    assert (report.shards, report.groups, report.members, report.problems) == (1, 2, 6, [])


def test_rows_point_at_their_sample(folder: Path) -> None:
    for row in pq.read_table(folder / "shard-000000.parquet").to_pylist():
        sample = Record.of(row, folder).read()
        group = from_sample(sample)
        assert group.key == row["group_key"] and group.seeds[row["member"]] == row["seed"]


def test_a_tar_cut_anywhere_is_detected(folder: Path) -> None:
    tar = folder / "shard-000000.tar"
    whole = tar.read_bytes()
    for length in range(0, len(whole), 512):
        tar.write_bytes(whole[:length])
        assert verify(folder).problems, f"cut to {length} bytes went unnoticed"


def test_a_flipped_byte_anywhere_is_detected(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("shard-000000.tar", "shard-000000.parquet"):
        path = folder / name
        whole = path.read_bytes()
        for position in [0, len(whole) - 1, *rng.integers(0, len(whole), 60).tolist()]:
            damaged = bytearray(whole)
            damaged[position] ^= 0x10
            path.write_bytes(bytes(damaged))
            assert verify(folder).problems or same_rows(path, whole), f"{name} byte {position}"
        path.write_bytes(whole)


def same_rows(path: Path, whole: bytes) -> bool:
    """A flip in a Parquet file's padding or statistics changes no data; then nothing wrong can be read."""
    return path.suffix == ".parquet" and pq.read_table(path).equals(pq.read_table(pa.BufferReader(whole)))


def test_damage_is_never_read_as_data(folder: Path) -> None:
    tar = folder / "shard-000000.tar"
    row = pq.read_table(folder / "shard-000000.parquet").to_pylist()[0]
    damaged = bytearray(tar.read_bytes())
    damaged[row["offset"] + 700] ^= 1
    tar.write_bytes(bytes(damaged))
    with pytest.raises(RunError, match=r"shard-000000\.tar: damaged .*verify RECIPE --repair"):
        Record.of(row, tar.parent).read()


def test_repair_quarantines(folder: Path) -> None:
    (folder / "shard-000000.tar").write_bytes(b"")
    (folder / "shard-000009.tar").write_bytes(b"left by a kill")
    (folder / "shard-000001.parquet.999999999.tmp").write_bytes(b"left by a kill")
    report = verify(folder)
    assert len(report.problems) == 3
    repair(folder, report)
    assert verify(folder).problems == []
    assert not list(folder.glob("shard-*"))


def test_a_full_disk_is_a_clear_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="cannot write: No space left on device; the lake is valid"):
        stage(folder, make_group(5), "f")
    monkeypatch.undo()
    assert not list((folder / ".stage").glob("*.tmp")) and verify(folder).problems == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_write_error_on_a_real_device() -> None:
    with pytest.raises(OSError, match="No space"), Path("/dev/full").open("wb") as stream:
        stream.write(b"x")
        stream.flush()


def test_a_shard_has_one_owner(folder: Path) -> None:
    with claim(folder, 3) as first, claim(folder, 3) as second:
        assert first and not second


def test_reopen_keeps_the_good_groups(tmp_path: Path) -> None:
    folder = tmp_path / "dataset=z"
    (folder / ".stage").mkdir(parents=True)
    bad = make_group(1)
    bad.statuses[2], bad.reasons, bad.rewards[2] = "failed_reward", [None, None, "a reason"], None
    for group in (make_group(0), bad):
        stage(folder, group, "f")
    commit(folder, 0, ["text-00000000", "text-00000001"], COLUMNS, "f")
    assert reopen(folder, 0, "f") == 1
    assert [p.name for p in (folder / ".stage").glob("*.sample")] == ["text-00000000.sample"]
    assert not list(folder.glob("shard-*"))


def test_plain_webdataset_reads_our_shards(folder: Path) -> None:
    import webdataset as wds

    samples = list(wds.WebDataset(str(folder / "shard-000000.tar"), shardshuffle=False))
    assert [s["__key__"] for s in samples] == ["text-00000000", "text-00000001"]
    assert json.loads(samples[0]["group.json"])["prompt"] == 'a red sign that says "W0"'
    assert {"latents.safetensors", "prompt.safetensors", "00.png", "02.png"} <= samples[0].keys()


def test_datasets_reads_our_shards(folder: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    shutil.copy(folder / "shard-000000.tar", tmp_path / "copy.tar")
    rows = load_dataset(
        "webdataset", data_files=str(tmp_path / "copy.tar"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(rows) == 2 and rows[1]["__key__"] == "text-00000001"
    assert rows[0]["00.png"].size == (16, 16)

"""Whatever a file of a lake has become, verify finds it, and every reader says it in one line."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save

from gpo_data.audit import galleries, members, statistics
from gpo_data.audit.show import load_groups
from gpo_data.errors import RunError, UsageError
from gpo_data.generation.measure import measure
from gpo_data.group import to_sample
from gpo_data.lake import catalog
from gpo_data.lake.reader import Reader
from gpo_data.lake.repair import repair
from gpo_data.lake.shard import commit, parquet_bytes
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.lake.stage import END, pack_sample, stage
from gpo_data.lake.verify import verify
from gpo_data.recipe import Recipe
from tests.parts.lake import Brightness
from tests.parts.shard import make_group

COLUMNS = {"target": pa.string(), "color": pa.string(), "ocr_text": pa.string()}
MANIFEST = {
    "fingerprint": "f",
    "fields": {},
    "measured": {},
    "recipe": {"model": "tiny", "reward": "1.0 * member", "task": {"kind": "text"}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of two shards of two groups, beside one that is whole."""
    for name in ("x", "whole"):
        folder = tmp_path / f"dataset={name}"
        (folder / ".stage").mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps(MANIFEST))
        for number in range(2):
            groups = [make_group(2 * number + i) for i in range(2)]
            for group in groups:
                stage(folder, group, "f")
            commit(folder, number, [group.key for group in groups], COLUMNS, "f")
    assert verify(tmp_path / "dataset=x").problems == []
    return tmp_path / "dataset=x"


def readers(folder: Path) -> list[Callable[[], Any]]:
    lake, name = str(folder.parent), folder.name.removeprefix("dataset=")
    recipe = Recipe(name=name, lake=lake, evaluators=["ocr"], reward="1.0")

    def audit() -> None:  # without its page, which takes a second
        data = members.read(lake, name, None, None)
        galleries.choose(data, statistics.summarise(data))

    def train() -> None:
        reader = Reader(lake, take_snapshot(catalog.connect(lake, name), name))
        for index in range(len(reader)):
            reader[index]

    return [
        lambda: load_groups(folder, limit=9),
        lambda: measure(recipe, [Brightness()], Console(quiet=True)),
        audit,
        train,
    ]


def one_line(action: Callable[[], Any]) -> bool:
    """Whether it was refused, and not otherwise than in one line of words."""
    try:
        action()
        return False
    except (UsageError, RunError) as error:
        assert "\n" not in str(error) and str(error)
        return True


def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[bool]:
    """Verify sees it, the other dataset can be asked, no reader has a traceback; which readers refused."""
    assert verify(folder).problems
    refused = [one_line(action) for action in readers(folder)]
    capsys.readouterr()
    counts = catalog.ask(str(folder.parent), "SELECT dataset, count(*) AS n FROM members WHERE reward >= 0 GROUP BY 1")
    assert {"dataset": "whole", "n": 12} in counts.to_pylist()
    if "x" not in counts["dataset"].to_pylist():
        assert "left out dataset x: " in capsys.readouterr().err
    repair(folder, verify(folder))
    assert verify(folder).problems == []
    return refused


MANIFESTS = [b"", b"null", b"[]", b"{}", b'{"fingerprint": 3}', b"\xff\xfe\x00", b"[" * 100_000]
MANIFESTS += [json.dumps({**MANIFEST, key: None}).encode() for key in MANIFEST]


@pytest.mark.parametrize("content", MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_damaged_manifest(content: bytes, folder: Path) -> None:
    (folder / "dataset.json").write_bytes(content)
    assert one_line(lambda: verify(folder))
    shown, measured, audited, trained = (one_line(action) for action in readers(folder))
    assert shown and measured and audited
    assert trained or b'"fingerprint": "f"' in content  # of which a snapshot reads no more
    lake = str(folder.parent)
    assert catalog.ask(lake, "SELECT count(*) AS n FROM members").to_pylist() == [{"n": 24}]
    assert catalog.ask(lake, "SELECT dataset FROM datasets ORDER BY 1").to_pylist() == [
        {"dataset": "whole"},
        {"dataset": "x"},
    ]


def edited(**changes: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rows of the first shard changed, the footer kept."""

    def damage(folder: Path) -> None:
        path = folder / "shard-000000.parquet"
        table = pq.read_table(path)
        rows = [row | {name: change(row) for name, change in changes.items()} for row in table.to_pylist()]
        footer = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
        path.write_bytes(parquet_bytes(rows, table.schema, footer))

    return damage


def another_type(folder: Path) -> None:
    path = folder / "shard-000000.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("reward")
    pq.write_table(table.set_column(place, "reward", pa.array(["high"] * len(table))), path)


def a_tasks_of_another_type(folder: Path) -> None:
    for path in folder.glob("shard-*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("target_count", pa.array(["many"] * len(table))), path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SIDECARS: dict[str, Callable[[Path], None]] = {
    "empty": lambda folder: (folder / "shard-000000.parquet").write_bytes(b"") and None,
    "cut": lambda folder: (
        (folder / "shard-000000.parquet").write_bytes((folder / "shard-000000.parquet").read_bytes()[:-700]) and None
    ),
    "of another shard": lambda folder: (
        (folder / "shard-000000.parquet").write_bytes((folder / "shard-000001.parquet").read_bytes()) and None
    ),
    "without a column": lambda folder: pq.write_table(
        pq.read_table(folder / "shard-000000.parquet").drop_columns("status"), folder / "shard-000000.parquet"
    ),
    "of another type": another_type,
    "a task's of another type": a_tasks_of_another_type,
    "a folder": lambda folder: a_folder(folder / "shard-000000.parquet"),
    "without rows": lambda folder: pq.write_table(
        pq.read_table(folder / "shard-000000.parquet").slice(0, 0), folder / "shard-000000.parquet"
    ),
    "offsets": edited(offset=lambda row: row["offset"] + 512),
    "a negative offset": edited(offset=lambda row: -512),
    "a huge offset": edited(offset=lambda row: 2**62),
    "a huge size": edited(size=lambda row: 2**62),
    "no offset": edited(offset=lambda row: None),
    "another folder's tar": edited(tar=lambda row: "../dataset=whole/shard-000000.tar"),
    "no tar": edited(tar=lambda row: None),
    "a member too many": edited(member=lambda row: row["member"] + 90),
    "a negative member": edited(member=lambda row: -1 - row["member"]),
    "a status of its own": edited(status=lambda row: "fine"),
    "no status": edited(status=lambda row: None),
    "no reward": edited(reward=lambda row: None),
    "another reward": edited(reward=lambda row: 0.25 * row["member"]),
    "no key": edited(group_key=lambda row: None),
    "another seed": edited(seed=lambda row: row["seed"] ^ 1),
    "groups exchanged": edited(group_key=lambda row: f"text-{1 - int(row['group_key'][-1]):08d}"),
}


@pytest.mark.parametrize("kind", SIDECARS)
def test_a_damaged_sidecar(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SIDECARS[kind](folder)
    check(folder, capsys)


@pytest.mark.parametrize("kind", ["a folder", "empty", "missing", "cut"])
def test_a_damaged_tar(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = folder / "shard-000000.tar"
    data = tar.read_bytes()
    if kind == "a folder":
        a_folder(tar)
    elif kind == "missing":
        tar.unlink()
    else:
        tar.write_bytes(data[: 5000 * (kind == "cut")])
    assert all(check(folder, capsys))


def packed(folder: Path, blocks: bytes) -> None:
    """A shard whose first group is `blocks`, with offsets, checksums and hashes that fit: what a stranger may share."""
    tar, path = folder / "shard-000000.tar", folder / "shard-000000.parquet"
    table = pq.read_table(path)
    rows, data = table.to_pylist(), tar.read_bytes()
    second = next(row for row in rows if row["group_key"] == "text-00000001")
    rest = data[second["offset"] : second["offset"] + second["size"]]
    for row in rows:
        first = row["group_key"] == "text-00000000"
        place = (0, blocks) if first else (len(blocks), rest)
        row |= {"offset": place[0], "size": len(place[1]), "crc32": zlib.crc32(place[1])}
    data = blocks + rest + END
    tar.write_bytes(data)
    footer = {k.decode(): v.decode() for k, v in table.schema.metadata.items() if k != b"ARROW:schema"}
    footer |= {"tar_sha256": hashlib.sha256(data).hexdigest(), "tar_bytes": str(len(data))}
    path.write_bytes(parquet_bytes(rows, table.schema, footer))


def with_parts(**parts: bytes | None) -> bytes:
    sample = to_sample(make_group(0))
    for name, data in parts.items():
        sample.pop(name)
        if data is not None:
            sample[name] = data
    return pack_sample("text-00000000", sample)


def with_json(**fields: Any) -> bytes:
    meta = json.loads(to_sample(make_group(0))["group.json"]) | fields
    return with_parts(**{"group.json": json.dumps(meta).encode()})


def with_entry(name: str, type: bytes = tarfile.REGTYPE) -> bytes:
    """A file more in the sample."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.size = type, "/etc/passwd", 4 * (type == tarfile.REGTYPE)
        archive.addfile(entry, io.BytesIO(b"data"))
    return with_parts() + stream.getvalue()[: 512 + 512 * (type == tarfile.REGTYPE)]


def coded(image: Image.Image, format: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


def huge_png() -> bytes:
    """13,000 x 13,000 pixels, in a few bytes: no more than its header is honest."""
    head = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(ran) print\nshowpage\n%%EOF\n"
LATENTS = make_group(0).latents
WRONG_LATENTS = {
    "of another number": LATENTS[:2],
    "of another shape": LATENTS.flatten(1),
    "whole numbers": LATENTS.int(),
    "not finite": LATENTS.clone().fill_(float("nan")),
}
TAIL = to_sample(make_group(0))["latents.safetensors"][8:]
SAMPLES: dict[str, Callable[[], bytes]] = {
    "an EPS named png": lambda: with_parts(**{"00.png": EPS}),
    "a GIF named png": lambda: with_parts(**{"00.png": coded(Image.new("RGB", (16, 16)), "GIF")}),
    "a huge picture": lambda: with_parts(**{"00.png": huge_png()}),
    "a picture cut": lambda: with_parts(**{"00.png": coded(Image.new("RGB", (16, 16)), "PNG")[:45]}),
    "no picture": lambda: with_parts(**{"00.png": None}),
    "a picture of nobody": lambda: with_entry("text-00000000.99.png"),
    "a huge header": lambda: with_parts(**{"latents.safetensors": struct.pack("<Q", 2**40) + TAIL}),
    "a negative header": lambda: with_parts(**{"latents.safetensors": b"\xff" * 8 + TAIL}),
    "no tensors": lambda: with_parts(**{"latents.safetensors": b"abc"}),
    "latents of another name": lambda: with_parts(**{"latents.safetensors": save({"other": LATENTS})}),
    **{
        f"latents {kind}": lambda latents=latents: with_parts(  # type: ignore[misc]
            **{"latents.safetensors": save({"latents": latents.contiguous()})}
        )
        for kind, latents in WRONG_LATENTS.items()
    },
    "no embeddings": lambda: with_parts(**{"prompt.safetensors": save({"other": torch.zeros(1)})}),
    "no prompt": lambda: with_parts(**{"prompt.safetensors": None}),
    "group.json not JSON": lambda: with_parts(**{"group.json": b"{"}),
    "group.json a list": lambda: with_parts(**{"group.json": b"[]"}),
    "group.json deep": lambda: with_parts(**{"group.json": b"[" * 200_000}),
    "group.json without seeds": lambda: with_json(seeds=None),
    "group.json of two members": lambda: with_json(seeds=[1, 2]),
    "group.json of texts": lambda: with_json(rewards=["a", "b", "c"]),
    "group.json of another": lambda: with_json(key="text-00000007"),
    "another name": lambda: with_entry("text-00000000.notes.txt"),
    "another key": lambda: with_entry("text-00000009.00.png"),
    "a path": lambda: with_entry("../../text-00000000.png"),
    "a link": lambda: with_entry("text-00000000.03.png", tarfile.SYMTYPE),
    "a part twice": lambda: with_entry("text-00000000.00.png"),
    "no tar": lambda: base64.b85encode(np.random.default_rng(0).bytes(409 * 4 + 2))[:1536],
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_shard_that_a_stranger_made(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a picture started a program"))
    packed(folder, SAMPLES[kind]())
    check(folder, capsys)


def test_what_verify_finds_whole_can_be_opened(folder: Path) -> None:
    packed(folder, with_parts())
    assert verify(folder).problems == [] and not any(one_line(action) for action in readers(folder))


def test_a_lake_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for lake in (str(tmp_path / "nowhere"), str(tmp_path), "memory://nowhere"):
        with pytest.raises(UsageError, match="no such folder|no dataset in it"):
            catalog.ask(lake, "SELECT count(*) FROM members")


@pytest.mark.parametrize("column", ["ocr_text", "color"])
@pytest.mark.parametrize("value", [[1], {"a": 1}, b"\xff", 5], ids=["list", "struct", "bytes", "number"])
def test_a_column_of_another_kind_stops_its_own_dataset_alone(
    value: Any, column: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "shard-000001.parquet"
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array([value] * len(table))), path)
    other = folder.with_name("dataset=other")
    shutil.copytree(folder.with_name("dataset=whole"), other)
    asked = f"SELECT DISTINCT dataset, {column}, exact FROM members"
    datasets = set(catalog.ask(str(folder.parent), asked)["dataset"].to_pylist())
    said = capsys.readouterr().err
    if value == 5:  # reads as text beside the others
        assert datasets == {"whole", "other", "x"} or "left out dataset x: " in said
    elif column == "color":  # a task's, whose type is known without other datasets
        assert datasets == {"whole", "other"} and said.startswith("left out dataset x: ")
        assert "the sidecar's column color is" in said and "expected string, as tasks have it" in said
    else:
        assert datasets == {"whole", "other"} and "left out dataset x: its column" in said


def test_pages_that_look_whole_stop_their_own_dataset_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "shard-000000.parquet"
    data = bytearray(path.read_bytes())
    for position in range(60, 400):
        data[position] ^= 0x55
    path.write_bytes(bytes(data))
    found = catalog.ask(str(folder.parent), "SELECT DISTINCT dataset, prompt FROM members ORDER BY 1")
    assert set(found["dataset"].to_pylist()) == {"whole"} and "left out dataset x" in capsys.readouterr().err

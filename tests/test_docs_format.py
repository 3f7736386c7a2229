"""docs/format.md against a lake that is drawn here, read with tarfile, pyarrow, json, zlib and safetensors alone."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import shutil
import tarfile
import zlib
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
from rich.console import Console

from gpo_data import recipe, status
from gpo_data.evaluators import blobs, boxes, color, compose, glyphs, image_stats, ocr, thumbnail, yolo
from gpo_data.generation.measure import measure
from gpo_data.parts import UNCONDITIONAL
from gpo_data.recipe import EVALUATORS
from gpo_data.tasks import TASKS
from tests.parts.pages import block, run, table

PAGE = "format.md"
GROUPS, SIZE, SHARDS = 6, 4, 3  # of the lake that conftest draws


@pytest.fixture(scope="module")
def dataset(drawn_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the drawn dataset, with the measurements of `color` added."""
    lake = tmp_path_factory.mktemp("format") / "lake"
    shutil.copytree(drawn_lake, lake)
    made = recipe.load(drawn_lake.parent / "small.yaml", ["--lake", str(lake)])
    measure(made, ["color"], Console(quiet=True))
    return lake / "dataset=small"


def first(*header: str) -> list[str]:
    """The first cells of a table's rows."""
    return [row[0] for row in table(PAGE, *header)]


def spelled(kind: pa.DataType) -> str:
    """An Arrow type as the page writes it."""
    if pa.types.is_list(kind):
        return f"list of {spelled(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "struct of " + ", ".join(f"{part.name} {spelled(part.type)}" for part in kind)
    return str(kind)


def columns(header: str, owner: str) -> list[tuple[str, str]]:
    """(column, type) of a task or an evaluator."""
    return [(name, kind) for of, name, kind in table(PAGE, header, "column", "type") if of == owner]


def footer(path: Path) -> dict[str, str]:
    metadata = pq.ParquetFile(path).schema_arrow.metadata
    return {key.decode(): value.decode() for key, value in metadata.items()}


def rows_of(sidecar: Path) -> list[dict]:
    rows: list[dict] = pq.ParquetFile(sidecar).read().to_pylist()
    return rows


def samples(tar: Path) -> dict[str, dict[str, bytes]]:
    """{key: {file: bytes}} in the order of the tar."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar) as archive:
        for entry in archive:
            key, _, name = entry.name.partition(".")
            stream = archive.extractfile(entry)
            assert stream is not None and entry.mtime == 0
            found.setdefault(key, {})[name] = stream.read()
    return found


def test_folders(dataset: Path) -> None:
    shards = [f"shard-{i:06d}" for i in range(SHARDS)]
    expected = [*(f"{shard}.{kind}" for shard in shards for kind in ("parquet", "tar")), "dataset.json"]
    assert {path.name for path in dataset.iterdir()} == {*expected, ".stage", "measures"}
    assert [path.name for path in dataset.glob("measures/*/*")] and all(
        re.fullmatch(r"[A-Za-z0-9._-]+@[A-Za-z0-9._+-]+", path.name) for path in (dataset / "measures").iterdir()
    )
    assert {path.suffix for path in (dataset / ".stage").iterdir()} <= {".lock"}


def test_dataset_json(dataset: Path) -> None:
    content = json.loads((dataset / "dataset.json").read_text())
    assert list(content) == first("key", "meaning")
    patterns = first("key of `fields`", "meaning")
    unknown = [k for k in content["fields"] if not any(fnmatch.fnmatchcase(k, p) for p in patterns)]
    optional = {"policy_digest", "policy_rounding", "imported"}
    unused = [p for p in patterns if p not in optional and not fnmatch.filter(content["fields"], p)]
    assert (unknown, unused) == ([], [])
    text = json.dumps(content["fields"], sort_keys=True)
    assert content["fingerprint"] == hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def test_tar(dataset: Path) -> None:
    keys = []
    stable_diffusion_3 = dict(table(PAGE, "model", "tensors of prompt.safetensors"))["Stable Diffusion 3, 3.5"]
    for tar in sorted(dataset.glob("shard-*.tar")):
        assert tar.read_bytes()[257:262] == b"ustar"
        for key, files in samples(tar).items():
            keys.append(key)
            pictures = [f"{member:02d}.png" for member in range(SIZE)]
            always = [name for name in first("file", "content")[1:] if name != UNCONDITIONAL]  # not asked for here
            assert list(files) == sorted(files) == [*pictures, *always]
            group = json.loads(files["group.json"])
            listed = first("key of group.json", "content")
            assert [*group, "reasons"] == listed and group["key"] == key  # no member failed
            assert group["prompt_id"] == hashlib.blake2b(group["prompt"].encode(), digest_size=6).hexdigest()
            assert {len(group[name]) for name in ("seeds", "statuses", "measurements", "rewards")} == {SIZE}
            latents = safetensors.torch.load(files["latents.safetensors"])
            assert list(latents) == ["latents"] and latents["latents"].shape == (SIZE, 16, 8, 8)
            embeddings = safetensors.torch.load(files["prompt.safetensors"])
            assert set(embeddings) == set(re.findall(r"\w+", stable_diffusion_3))
            assert embeddings["prompt_embeds"].ndim == 2  # no batch axis
    assert keys == [f"text-{index:08d}" for index in range(GROUPS)]


def test_sidecar(dataset: Path) -> None:
    listed = {
        "*targets*": columns("task", "text"),
        "*measurements*": columns("evaluator", "image_stats") + columns("evaluator", "ocr"),
    }
    expected = [pair for name, kind, _ in table(PAGE, "column", "type") for pair in listed.get(name, [(name, kind)])]
    fingerprint = json.loads((dataset / "dataset.json").read_text())["fingerprint"]
    for sidecar in sorted(dataset.glob("shard-*.parquet")):
        file = pq.ParquetFile(sidecar)
        assert [(field.name, spelled(field.type)) for field in file.schema_arrow] == expected
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        facts = footer(sidecar)
        raw = file.metadata.metadata
        assert {key.decode() for key in raw} == {*first("footer key", "meaning"), "ARROW:schema"}
        tar = sidecar.with_suffix(".tar").read_bytes()
        assert (facts["tar_sha256"], int(facts["tar_bytes"])) == (hashlib.sha256(tar).hexdigest(), len(tar))
        assert (facts["groups"], facts["group_size"], facts["schema_version"]) == ("2", str(SIZE), "1")
        assert facts["fingerprint"] == fingerprint
        rows = rows_of(sidecar)
        in_tar = samples(sidecar.with_suffix(".tar"))
        assert [(r["group_key"], r["member"]) for r in rows] == [(key, m) for key in in_tar for m in range(SIZE)]
        end = 0
        for row in rows:
            group = json.loads(in_tar[row["group_key"]]["group.json"])
            member = row["member"]
            told = group["target"] | group["measurements"][member]
            told |= {"seed": group["seeds"][member], "status": group["statuses"][member]}
            told |= {"reward": group["rewards"][member], "prompt": group["prompt"], "prompt_id": group["prompt_id"]}
            assert {name: row[name] for name in told} == told and row["tar"] == sidecar.with_suffix(".tar").name
            assert row["size"] % 512 == 0 and row["offset"] == (end if member == 0 else row["offset"])
            assert zlib.crc32(tar[row["offset"] : row["offset"] + row["size"]]) == row["crc32"]
            end = row["offset"] + row["size"]
        assert tar[end:] == bytes(1024)


def test_tables_of_columns_are_the_codes() -> None:
    assert {row[0] for row in table(PAGE, "task", "column", "type")} == set(TASKS)
    for name, kind in TASKS.items():
        assert columns("task", name) == [(column, spelled(t)) for column, t in kind.columns.items()]
    modules = {"image_stats": image_stats, "ocr": ocr, "yolo": yolo, "color": color, "boxes": boxes, "compose": compose}
    modules |= {"glyphs": glyphs, "blobs": blobs, "thumbnail": thumbnail}
    scorers = {
        name for name, (_, kind) in EVALUATORS.items() if kind in ("ClipEvaluator", "VlmEvaluator")
    }  # one column, of their name
    assert {*modules, *scorers} == {*EVALUATORS, "image_stats"}
    for name, module in modules.items():
        assert columns("evaluator", name) == [(column, spelled(t)) for column, t in module.COLUMNS.items()]


def test_statuses_are_the_codes() -> None:
    assert tuple(first("status", "meaning")) == status.CODES


def test_measures(dataset: Path) -> None:
    (folder,) = (dataset / "measures").iterdir()
    name, _, version = folder.name.partition("@")
    for sidecar in sorted(dataset.glob("shard-*.parquet")):
        path = folder / sidecar.name
        expected = [("group_key", "string"), ("member", "int32"), *columns("evaluator", "color")]
        assert [(field.name, spelled(field.type)) for field in pq.ParquetFile(path).schema_arrow] == expected
        facts = footer(path)
        assert {*first("footer key of measures", "meaning")} <= facts.keys()
        assert (facts["evaluator"], facts["version"], facts["failed"]) == (name, version, "0")
        assert facts["tar_sha256"] == footer(sidecar)["tar_sha256"]
        places = [[(row["group_key"], row["member"]) for row in rows_of(one)] for one in (path, sidecar)]
        assert places[0] == places[1]


def test_seeds(dataset: Path) -> None:
    member_seed = run(PAGE, block(PAGE, "def member_seed"))["member_seed"]
    for sidecar in sorted(dataset.glob("shard-*.parquet")):
        for row in rows_of(sidecar):
            assert row["seed"] == member_seed(0, "text", row["prompt_id"], row["member"]) < 2**63
            assert int(sidecar.stem[-6:]) == int(row["group_key"][-8:]) // 2  # groups_per_shard


def test_the_pages_reader_and_query(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_group = run(PAGE, block(PAGE, "def read_group"))["read_group"]
    assert read_group(dataset, "text-00000003") == samples(dataset / "shard-000001.tar")["text-00000003"]
    with pytest.raises(KeyError):
        read_group(dataset, "text-00000009")
    monkeypatch.chdir(dataset.parents[1])
    found = duckdb.connect().execute(block(PAGE, "read_parquet", "sql")).fetchall()
    assert [(name, key, n) for name, key, _, n in found] == [("small", f"text-{i:08d}", SIZE) for i in range(GROUPS)]

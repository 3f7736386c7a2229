"""Measures are verified: what is cut, edited or of another tar does not count, is named, and is made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpo_data.generation.measure import measure
from gpo_data.lake import catalog
from gpo_data.lake.repair import repair
from gpo_data.lake.shard import parquet_bytes
from gpo_data.lake.verify import verify
from gpo_data.recipe import Recipe
from tests.parts.lake import Brightness
from tests.parts.lake import drawn as drawn

COUNT = "SELECT count(brightness) FROM members"


def edit(path: Path, change: Callable[[dict], dict], footer: dict[str, str] | None = None) -> None:
    table = pq.read_table(path)
    kept = {k.decode(): v.decode() for k, v in table.schema.metadata.items()} | (footer or {})
    rows = [change(row) for row in table.to_pylist()]
    types = dict(zip(table.column_names, table.schema.types, strict=True)) | {
        "reward": pa.float64(),
        "tar": pa.string(),
    }
    path.write_bytes(parquet_bytes(rows, pa.schema([(name, types[name]) for name in rows[0]]), kept))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "of another tar": (lambda path: edit(path, lambda row: row, {"tar_sha256": "0" * 64}), "measures another tar"),
    "edited": (lambda path: edit(path, lambda row: row | {"brightness": 0.5}), "values were changed"),
    "without members": (lambda path: edit(path, lambda row: row | {"member": 0}), "has other rows"),
    "a reward": (lambda path: edit(path, lambda row: row | {"reward": 1.0}), "has the columns reward"),
    "a tar": (lambda path: edit(path, lambda row: row | {"tar": "../x.tar"}), "has the columns tar"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_found_named_and_made_again(
    kind: str, drawn: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(drawn.lake) / "dataset=text-x"
    path = measure(drawn, [Brightness()])[1]
    assert verify(folder).problems == []
    damage, said = DAMAGES[kind]
    damage(path)
    (problem,) = verify(folder).problems
    assert problem[0] == path and said in problem[1] and "measure RECIPE` make it again" in problem[1]
    capsys.readouterr()
    con = catalog.connect(drawn.lake)
    found = con.execute(COUNT).fetchall()
    if said in ("cannot be read", "measures another tar"):  # what is seen without reading the rows
        assert found == [(15,)] and "left out 1 measures of brightness@1-beta-2" in capsys.readouterr().err
    assert con.execute("SELECT DISTINCT reward, tar FROM members WHERE status = 'ok' ORDER BY tar").fetchall() == [
        (1.0, f"shard-{number:06d}.tar") for number in range(3)
    ]
    assert repair(folder, verify(folder)) == 1 and (folder / "shard-000001.parquet").is_file()
    assert measure(drawn, [Brightness()]) == [path] and verify(folder).problems == []
    assert catalog.connect(drawn.lake).execute(COUNT).fetchall() == [(23,)]


def test_a_column_of_the_shards_has_a_name_of_its_own(drawn: Recipe) -> None:
    path = measure(drawn, [Brightness()])[0]
    edit(path, lambda row: row | {"reward": 0.25})
    asked = """SELECT DISTINCT reward, "reward__brightness@1-beta-2" AS other FROM members WHERE other IS NOT NULL"""
    assert catalog.connect(drawn.lake).execute(f"{asked} AND status = 'ok'").fetchall() == [(1.0, 0.25)]


def test_pages_that_cannot_be_read_do_not_stop_the_lake(drawn: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    path = measure(drawn, [Brightness()])[1]
    data = bytearray(path.read_bytes())
    data[4:120] = bytes(116)
    path.write_bytes(bytes(data))
    assert catalog.ask(drawn.lake, COUNT)[0].to_pylist() == [15]
    assert "left out 1 measures" in capsys.readouterr().err


def test_measures_of_0_1_have_no_digest_and_count(drawn: Recipe) -> None:
    folder = Path(drawn.lake) / "dataset=text-x"
    for path in measure(drawn, [Brightness()]):
        table = pq.read_table(path)
        footer = {k: v for k, v in table.schema.metadata.items() if k != b"values"}
        pq.write_table(table.replace_schema_metadata(footer), path, write_page_checksum=True)
    assert verify(folder).problems == [] and catalog.connect(drawn.lake).execute(COUNT).fetchall() == [(23,)]
    assert json.loads((folder / "dataset.json").read_text())["fingerprint"] == "f00d"

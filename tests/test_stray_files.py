"""What file managers, other evaluators and stopped runs leave in a lake: named, taken away, and never read as data."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpo_data import cli
from gpo_data.errors import UsageError
from gpo_data.generation.generate import draw
from gpo_data.generation.measure import measure
from gpo_data.lake import catalog
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.repair import repair
from gpo_data.lake.verify import verify
from gpo_data.recipe import Recipe
from gpo_data.sharing.tag import differences, make_tag
from tests.parts.lake import Brightness
from tests.parts.lake import drawn as drawn

ROWS = "SELECT count(*), count(brightness) FROM members"


def flip(path: Path, share: float) -> None:
    """One bit of one byte, at that share of the file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 1
    path.write_bytes(data)


@pytest.fixture
def folder(drawn: Recipe) -> Path:
    measure(drawn, [Brightness()])
    return Path(drawn.lake) / "dataset=text-x"


def test_a_copy_of_a_shard_is_no_shard(drawn: Recipe, folder: Path) -> None:
    rows = catalog.connect(drawn.lake).execute(ROWS).fetchall()
    (measures,) = folder.glob("measures/*")
    copies = [
        folder / "shard-000000 (copy).parquet",
        folder / "shard-000000.old.tar",
        measures / "shard-000001-2.parquet",
    ]
    for copy, of in zip(copies, ("shard-000000.parquet", "shard-000000.tar", "shard-000001.parquet"), strict=True):
        shutil.copy(copy.with_name(of), copy)
    for names in (None, ["text-x"]):
        assert catalog.connect(drawn.lake, names).execute(ROWS).fetchall() == rows
    assert measure(drawn, [Brightness()]) == []
    report = verify(folder)
    assert {path for path, why in report.problems if "nothing reads" in why} == {*copies}
    assert len(report.problems) == report.shards == 3
    assert repair(folder, report) == 3 and verify(folder).problems == []
    assert sorted(path.name for path in (folder / ".quarantine").rglob("shard-*")) == sorted(c.name for c in copies)


def test_a_damaged_sidecar_is_repaired_where_its_shard_was_measured(drawn: Recipe, folder: Path) -> None:
    path = folder / "shard-000001.parquet"
    flip(path, 0.5)
    (problem,) = verify(folder).problems
    assert problem[0] == path and repair(folder, verify(folder)) == 2
    assert verify(folder).problems == []


def test_no_bit_of_a_table_is_left_out(folder: Path) -> None:
    """Pages have checksums; the footer, with what SQL leaves row groups out by, has none."""
    (measures,) = folder.glob("measures/*/shard-000001.parquet")
    for path, times in ((folder / "shard-000001.parquet", 60), (measures, 12)):
        whole = path.read_bytes()
        writer = whole.index(b"parquet-cpp-arrow"), whole.rindex(b"parquet-cpp-arrow") + 30
        for i in range(times):
            flip(path, i / times)
            at = len(whole) * i // times
            assert writer[0] <= at < writer[1] or verify(folder).problems, f"{path.name}: byte {at} of {len(whole)}"
            path.write_bytes(whole)
    assert verify(folder).problems == []


def test_what_is_measured_as_before_is_as_it_was_tagged(drawn: Recipe, folder: Path) -> None:
    made = make_tag(folder, "v1")
    files = {path: path.read_bytes() for path in folder.rglob("measures/*/*.parquet")}
    other = Brightness()
    other.version = "other"
    measure(drawn, [other])
    assert measure(drawn, [Brightness()]) == [] and {path: path.read_bytes() for path in files} != files
    assert differences(folder, made) == []
    old = {name: hash if "measures" not in name else "0" * 64 for name, hash in made.files.items()}
    assert len(differences(folder, dataclasses.replace(made, files=old))) == 3


def test_verify_repairs_what_differs_from_its_tag(
    drawn: Recipe, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tag(folder, "v1")
    (folder / "shard-000002.parquet").write_bytes(b"")
    recipe = tmp_path / "x.yaml"
    recipe.write_text("name: text-x\ntask: {kind: text}\nevaluators: [color]\nreward: color_share\n")
    asked = ["verify", str(recipe), "--lake", drawn.lake, "--tag", "v1", "--redraw", "1"]
    assert cli.main([*asked, "--repair"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "shard-000002.parquet was changed since tag v1" in said and "repaired: 2 files moved" in said
    assert "nothing is drawn again before its problems are repaired" in said
    assert (folder / ".quarantine/shard-000002.parquet").is_file()


def test_a_lake_may_lie_below_a_folder_that_looks_like_one(drawn: Recipe, tmp_path: Path) -> None:
    lake = tmp_path / "dataset=other" / "k=v" / "lake"
    shutil.copytree(drawn.lake, lake)
    asked = "SELECT DISTINCT dataset FROM members UNION ALL SELECT DISTINCT dataset FROM groups"
    assert catalog.connect(str(lake)).execute(asked).fetchall() == [("text-x",)] * 2
    assert catalog.connect(str(lake), ["text-x"]).execute("SELECT count(*) FROM datasets").fetchall() == [(1,)]


def test_nothing_is_drawn_beside_what_another_version_measured(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpo_data import recipe
    from gpo_data.evaluators.color import ColorEvaluator

    def drawing(number: int, *more: str) -> Any:
        asked = ["--name", "seen", "--evaluators", "[color]", "--reward", "color_share", *more]
        return draw(recipe.load(here, [*asked, "--task.num_prompts", str(number)]), console)

    console = Console(record=True, file=io.StringIO(), width=1000)
    folder = drawing(2)
    was = ColorEvaluator.version
    assert (read_manifest(folder).evaluators or {})["color"] == was
    monkeypatch.setattr(ColorEvaluator, "version", "3")
    with pytest.raises(UsageError, match=f"measured by other versions of the evaluators.*color: {was} there, 3 now"):
        drawing(4)
    drawing(2)
    assert f"color: {was} there, 3 now; `gpo-data measure` measures again" in console.export_text()
    assert len(measure(recipe.load(here, ["--name", "seen", "--evaluators", "[color]", "--reward", "color_share"]))) > 0
    older = json.loads((folder / "dataset.json").read_text())
    del older["evaluators"]
    (folder / "dataset.json").write_text(json.dumps(older))
    drawing(4)

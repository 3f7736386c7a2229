"""The verb `measure`: new evaluators on old shards."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path

import pyarrow as pa
import pytest

from gpo_data.errors import RunError, UsageError
from gpo_data.generation.measure import measure
from gpo_data.lake import catalog
from gpo_data.lake.locks import claim
from gpo_data.lake.manifest import measured
from gpo_data.lake.shard import tar_path
from gpo_data.lake.verify import verify
from tests.parts.lake import MANIFEST, Brightness
from tests.parts.lake import drawn as drawn
from tests.parts.lake import lake as lake


def test_a_new_evaluator_on_old_shards(drawn):
    judge, folder = Brightness(), Path(drawn.lake) / "dataset=text-x"
    before = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    written = measure(drawn, [judge])
    assert [p.parent.name + "/" + p.name for p in written] == [
        f"brightness@1-beta-2/shard-{i:06d}.parquet" for i in range(3)
    ]
    assert {path.name: path.read_bytes() for path in folder.glob("shard-*")} == before
    rows = catalog.connect(drawn.lake).execute("SELECT seed, brightness FROM members ORDER BY seed").fetchall()
    assert rows == [(s, None if s == 3 else s + 2.0) for s in (10 * g + m for g in range(6) for m in range(4))]
    judge.seen.clear()
    assert measure(drawn, [judge]) == [] and not judge.seen
    (folder / "measures" / "brightness@1-beta-2" / "shard-000001.parquet").write_bytes(b"damaged")
    assert len(measure(drawn, [judge])) == 1 and judge.seen == [20, 21, 22, 23, 30, 31, 32, 33]
    assert not list(folder.rglob("*.tmp"))


def test_a_member_that_the_evaluator_raises_on_is_null_and_tried_again(drawn, capsys):
    judge = Brightness()
    judge.broken = {41}
    measure(drawn, [judge])
    assert (
        "1 members failed" in (shown := capsys.readouterr().out) and "text-00000004 1: brightness: ValueError" in shown
    )
    count = "SELECT count(brightness) FROM members"
    assert catalog.connect(drawn.lake).execute(count).fetchall() == [(22,)]
    judge.broken = set()
    assert [path.stem for path in measure(drawn, [judge])] == ["shard-000002"]
    assert catalog.connect(drawn.lake).execute(count).fetchall() == [(23,)]


def test_ctrl_c_keeps_what_is_measured(drawn, capsys):
    class Impatient(Brightness):
        def measure(self, images, targets):
            if int(images[0][0, 0, 0]) == 30:
                raise KeyboardInterrupt
            return super().measure(images, targets)

    with pytest.raises(KeyboardInterrupt):
        measure(drawn, [Impatient()])
    assert "1 of 3 shards measured are kept" in capsys.readouterr().out
    judge = Brightness()
    assert len(measure(drawn, [judge])) == 2 and min(judge.seen) == 20


def test_measure_leaves_a_shard_that_another_process_has_and_refuses_damage(drawn, capsys):
    folder = Path(drawn.lake) / "dataset=text-x"
    with claim(folder, 1):
        assert len(measure(drawn, [Brightness()])) == 2
    assert "another process" in capsys.readouterr().out
    tar = tar_path(folder, 1)
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(RunError, match="shard-000001.tar: damaged"):
        measure(drawn, [Brightness()])


def test_measure_mistakes(drawn):
    with pytest.raises(UsageError, match="found 'orc'"):
        measure(drawn, ["orc"])
    with pytest.raises(UsageError, match="no dataset here"):
        measure(dataclasses.replace(drawn, lake="memory://x"), [Brightness()])
    with pytest.raises(UsageError, match="no dataset here"):
        measure(dataclasses.replace(drawn, name="nope"), [Brightness()])


def test_evaluators_by_name(drawn):
    image_stats = measure(drawn, ["image_stats"])
    assert len(image_stats) == 3 and image_stats[0].parent.name.startswith("image_stats@")
    rows = catalog.connect(drawn.lake).execute("SELECT count(entropy), max(entropy), count(*) FROM members").fetchall()
    assert rows == [(23, 0.0, 24)]  # flat pictures
    # Without names: the recipe's evaluators, where the shards were not drawn with them and have no measures.
    assert {path.parent.name.split("@")[0] for path in measure(drawn)} == {"ocr"}
    assert measure(drawn) == []


def test_of_several_settings_those_count_that_were_asked_for_last(drawn, capsys):
    def asked(version: str) -> tuple[int, float]:
        class Constant(Brightness):
            def measure(self, images, targets):
                return [{"brightness": float(version)}] * len(images)

        judge = Constant()
        judge.version = version
        written = len(measure(drawn, [judge]))
        found = catalog.connect(drawn.lake).execute("SELECT max(brightness) FROM members").fetchall()
        return written, found[0][0]

    assert [asked(version) for version in ("7", "3", "5")] == [(3, 7.0), (3, 3.0), (3, 5.0)]
    capsys.readouterr()
    assert asked("7") == (0, 7.0) and "3 of them count again" in capsys.readouterr().out
    assert asked("7") == (0, 7.0) and "count again" not in capsys.readouterr().out
    assert verify(Path(drawn.lake) / "dataset=text-x").problems == []


def test_what_is_measured_last_counts_also_where_the_clock_was_set_back(drawn, monkeypatch):
    judge, ahead = Brightness(), datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)

    class Ahead(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return ahead

    with monkeypatch.context() as patch:
        patch.setattr("gpo_data.generation.measured.datetime.datetime", Ahead)
        measure(drawn, [judge])
    judge.version, judge.measure = "later", lambda images, targets: [{"brightness": 2.0}] * len(images)
    assert len(measure(drawn, [judge])) == 3
    found = catalog.connect(drawn.lake).execute("SELECT DISTINCT brightness FROM members WHERE brightness IS NOT NULL")
    assert found.fetchall() == [(2.0,)]


def test_shards_that_were_drawn_with_the_evaluator_are_skipped_until_its_settings_change(drawn, monkeypatch):
    class Reader(Brightness):
        name, columns = "ocr", {"ocr_text": pa.string()}

        def measure(self, images, targets):
            return [{"ocr_text": "again"}] * len(images)

    monkeypatch.setattr("gpo_data.generation.measure.build", lambda recipe, alone: [Reader()])
    recipe = dataclasses.replace(drawn, evaluators=["ocr"])
    card = MANIFEST | {"measured": measured(recipe)}
    (Path(drawn.lake) / "dataset=text-x" / "dataset.json").write_text(json.dumps(card))
    assert measure(recipe) == []
    changed = dataclasses.replace(recipe, ocr=dataclasses.replace(recipe.ocr, upscale=2.0))
    assert len(measure(changed)) == 3
    texts = "SELECT ocr_text, count(*) FROM members GROUP BY 1 ORDER BY 2"
    assert catalog.connect(drawn.lake).execute(texts).fetchall() == [("AB", 1), ("again", 23)]  # one has no picture


def test_an_evaluator_that_fails_for_every_member_fails(drawn):
    judge = Brightness()
    judge.broken = set(range(100))
    with pytest.raises(RunError, match="all 23 members failed, .*; the first, text-00000000 0: brightness: ValueError"):
        measure(drawn, [judge])

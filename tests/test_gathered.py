"""Small sidecars gathered into larger files on this machine: the same answers, whatever happens to lake and files."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpo_data.lake import catalog, gathered, measures
from gpo_data.lake.lake import Lake
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.lake.sql import listed
from tests.parts.lake import COLUMNS, rows_of, write_measure, write_shard

QUESTIONS = [
    "SELECT * FROM members ORDER BY ALL",
    "SELECT * FROM groups ORDER BY dataset, group_key",
    "SELECT * FROM shards ORDER BY dataset, shard",
    "SELECT dataset, name, fingerprint FROM datasets ORDER BY 1",
]


def answers(lake: Path) -> list[list[dict]]:
    return [catalog.ask(str(lake), question).to_pylist() for question in QUESTIONS]


def parts(scratch: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in scratch.glob("gathered/*/*")}


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPO_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(gathered, "PART", 4)
    return tmp_path / "scratch"


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """12 datasets of 2 shards; some have a column that others lack, or a wider type of it."""
    for number in range(12):
        kind = (pa.int32(), pa.int64(), pa.float64())[number % 3]
        columns = COLUMNS | ({"n_found": kind} if number % 2 else {})
        for shard in range(2):
            rows = rows_of(shard, [0.0, None, number / 12]) + rows_of(7 + shard, [0.5, 0.5, 0.5])
            folder = tmp_path / f"lake/dataset=d{number:02d}"
            write_shard(str(folder), shard, [row | {"n_found": number} for row in rows], columns)
    return tmp_path / "lake"


@pytest.fixture
def expected(lake: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[dict]]:
    found = answers(lake)  # of so few sidecars none are gathered
    assert not parts(scratch)
    monkeypatch.setattr(gathered, "FEWEST", 1)
    return found


def test_the_same_answers_and_files_are_made_once(lake: Path, scratch: Path, expected: list[list[dict]]) -> None:
    assert answers(lake) == expected
    made = parts(scratch)
    assert len(made) >= 6
    assert answers(lake) == expected
    assert parts(scratch) == made


def test_a_question_to_one_large_dataset_reads_copies_and_what_trains_its_sidecars(
    lake: Path, scratch: Path, expected: list[list[dict]]
) -> None:
    question = "SELECT * FROM members ORDER BY ALL"
    of_one = [row for row in expected[0] if row["dataset"] == "d03"]
    frozen = take_snapshot(catalog.connect(str(lake), "d03"), "d03")
    assert not parts(scratch) and len(of_one) == 12
    assert catalog.ask(str(lake), question, dataset=["d03"]).select(list(of_one[0])).to_pylist() == of_one
    assert Lake(str(lake))["d03"].members().num_rows == 12
    made = list(scratch.glob("gathered/*/*.members.parquet"))
    assert 1 <= len(made) <= 2
    changed = catalog.ask(str(lake), question, dataset=["d03"])
    for path in made:  # a copy that says something else: seen by questions, not by training
        table = pq.read_table(path)
        at = table.column_names.index("reward")
        pq.write_table(table.set_column(at, "reward", pa.array([0.125] * len(table))), path)
    assert not catalog.ask(str(lake), question, dataset=["d03"]).equals(changed)
    assert take_snapshot(catalog.connect(str(lake), "d03"), "d03").equals(frozen)


def test_no_copies_are_made_where_there_is_no_room(
    lake: Path, scratch: Path, expected: list[list[dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathered, "ROOM", 2**60)
    assert answers(lake) == expected and not parts(scratch)
    monkeypatch.undo()
    monkeypatch.setenv("GPO_SCRATCH", str(scratch))
    monkeypatch.setattr(gathered, "FEWEST", 1)
    answers(lake)
    monkeypatch.setattr(gathered, "ROOM", 2**60)
    made = parts(scratch)
    assert made and answers(lake) == expected and parts(scratch) == made  # those that are there need none


def test_a_new_changed_or_removed_sidecar_is_seen_and_changes_one_part(
    lake: Path, scratch: Path, expected: list[list[dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = (
        lambda: write_shard(str(lake / "dataset=d04"), 2, rows_of(9, [0.25, 1.0])),
        lambda: write_shard(str(lake / "dataset=d04"), 1, rows_of(1, [1.0, 1.0, 1.0])),
        lambda: (lake / "dataset=d05/shard-000000.parquet").unlink(),
    )
    for change in changes:
        now = answers(lake)
        before = parts(scratch)
        change()
        changed = answers(lake)
        assert changed != now
        assert len(parts(scratch).keys() - before.keys()) <= 4  # two parts, where one was cut in two or two became one
        with monkeypatch.context() as patch:
            patch.setattr(gathered, "FEWEST", 10**6)
            assert answers(lake) == changed


def test_a_damaged_sidecar_is_left_out_as_before(
    lake: Path, scratch: Path, expected: list[list[dict]], capsys: pytest.CaptureFixture[str]
) -> None:
    answers(lake)
    (lake / "dataset=d06/shard-000001.parquet").write_bytes(b"no Parquet")
    capsys.readouterr()
    rows = answers(lake)[0]
    assert rows == [row for row in expected[0] if row["dataset"] != "d06"]
    assert "left out dataset d06" in capsys.readouterr().err


def test_a_damaged_part_or_a_folder_that_cannot_be_written_costs_time_alone(
    lake: Path, scratch: Path, expected: list[list[dict]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers(lake)
    made = parts(scratch)
    for path in scratch.glob("gathered/*/*.members.parquet"):
        path.write_bytes(path.read_bytes()[:-100])
    assert answers(lake) == expected
    assert parts(scratch).keys() == made.keys() and parts(scratch) != made  # made again
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GPO_SCRATCH", str(tmp_path / "file"))
    assert answers(lake) == expected


def test_parts_that_no_question_uses_are_removed(lake: Path, scratch: Path, expected: list[list[dict]]) -> None:
    answers(lake)
    old = time.time() - gathered.KEPT - 1
    for path in scratch.glob("gathered/*/*"):
        os.utime(path, (old, old))
    first = parts(scratch)
    write_shard(str(lake / "dataset=d04"), 1, rows_of(9, [0.25, 1.0]))
    answers(lake)
    left = parts(scratch)
    assert first.keys() - left.keys()  # what the part of that sidecar was
    assert first.keys() & left.keys()  # in use


def test_an_object_store_is_listed_and_the_parts_are_read(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, store = f"/{uuid.uuid4().hex}", fsspec.filesystem("memory")
    lake = f"memory:/{root}/lake"
    for number in range(6):
        write_shard(f"{root}/lake/dataset=d{number}", 0, rows_of(0, [0.0, None, number / 6]), files=store)
    try:
        expected = [catalog.ask(lake, question).to_pylist() for question in QUESTIONS]
        monkeypatch.setattr(gathered, "FEWEST", 1)
        for _ in range(2):
            assert [catalog.ask(lake, question).to_pylist() for question in QUESTIONS] == expected
        monkeypatch.setattr(store, "cat_ranges", None)  # no sidecar is fetched
        for path in (scratch / "sidecars").iterdir():
            path.unlink()
        assert catalog.ask(lake, "SELECT count(*) AS n FROM members")["n"].to_pylist() == [18]
        monkeypatch.undo()
    finally:
        store.rm(root, recursive=True)


def test_measures_join_what_is_gathered_and_no_sidecar_is_opened(
    lake: Path, scratch: Path, expected: list[list[dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"group_key": f"text-{group:08d}", "member": i, "bright": 1.0} for group in (0, 7) for i in range(3)]
    write_measure(lake / "dataset=d03", "bright@1", 0, rows)
    answers(lake)
    asked: list[list[str]] = []
    monkeypatch.setattr(measures, "listed", lambda paths: asked.append(paths) or listed(paths))
    (found,) = catalog.ask(str(lake), "SELECT count(bright) AS n, any_value(dataset) AS d FROM members").to_pylist()
    assert found["n"] == 6
    assert [path for paths in asked for path in paths if "/measures/" not in path] == []

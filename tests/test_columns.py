"""Columns of many rows, in pieces; a snapshot of them whatever order its members come in."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpo_data.errors import UsageError
from gpo_data.lake import catalog, columns, locked
from gpo_data.lake.columns import changes, codes, encoded, pick, pieces_of_bytes, taken_from
from gpo_data.lake.reader import Reader, merge
from gpo_data.lake.snapshot import digest, take_snapshot
from gpo_train.snapshot import _checksum
from tests.parts.lake import rows_of, write_shard

SCHEMA = pa.schema({"name": pa.string(), "n": pa.int64()})
ROWS = [("b", 1), ("ü", 2), ("a", 3), ("b", 4), ("a", 5), ("Z", 6)]


def pieces(*sizes: int) -> list[pa.RecordBatch]:
    left, found = list(ROWS), []
    for size in sizes:
        names, numbers = zip(*left[:size], strict=True) if size else ((), ())
        found.append(pa.record_batch([pa.array(names, pa.string()), pa.array(numbers, pa.int64())], schema=SCHEMA))
        left = left[size:]
    return found


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_pieces_give_the_same_table_however_they_are_cut(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "AT_ONCE", at_once)
    whole = encoded(pieces(6), SCHEMA, ["name"])
    assert whole["name"].to_pylist() == [name for name, _ in ROWS] and whole["n"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert whole["name"].chunk(0).dictionary.to_pylist() == ["Z", "a", "b", "ü"]  # by their bytes, as DuckDB has them
    for sizes in [(1, 5), (2, 0, 2, 2), (1, 1, 1, 1, 1, 1)]:
        assert encoded(pieces(*sizes), SCHEMA, ["name"]).equals(whole)
    assert encoded([], SCHEMA, ["name"]).num_rows == 0


def test_what_is_picked_has_no_values_that_are_gone() -> None:
    some = taken_from(encoded(pieces(6), SCHEMA, ["name"]))
    pick(some, np.array([False, False, True, False, True, True]))
    assert some["name"].to_pylist() == ["a", "a", "Z"] and some["name"].dictionary.to_pylist() == ["Z", "a"]
    pick(some, np.array([2, 0]))
    assert some["name"].to_pylist() == ["Z", "a"] and some["n"].to_pylist() == [6, 3] and list(some) == ["name", "n"]


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_bytes_for_a_checksum_are_those_of_the_whole_text(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "AT_ONCE", at_once)
    plain = pa.Table.from_batches(pieces(2, 4))
    for table in (plain, encoded(pieces(4, 2), SCHEMA, ["name"])):
        assert b"".join(pieces_of_bytes(table["name"])) == "b\0ü\0a\0b\0a\0Z".encode()
        assert b"".join(pieces_of_bytes(table["n"])) == np.arange(1, 7).tobytes()
        assert b"".join(pieces_of_bytes(table["name"][:0])) == b""


def test_changes_are_of_values_and_not_of_their_codes() -> None:
    twice = pa.concat_tables([encoded(pieces(1), SCHEMA, ["name"]), encoded(pieces(1), SCHEMA, ["name"])])
    other = pa.concat_tables([encoded([pieces(1, 5)[1]], SCHEMA, ["name"]), twice])  # with another dictionary
    for column in (other["name"], other["name"].cast(pa.string())):
        assert changes(column).tolist() == [True, True, True, True, True, True, False]
        assert len(set(codes(column).tolist())) == 4


def test_a_snapshot_is_in_order_in_whatever_order_shards_have_its_groups(tmp_path) -> None:
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        for shard, group in enumerate(order):
            write_shard(str(tmp_path / f"dataset={name}"), shard, rows_of(group, [0.0, None, 1.0, 0.25 * group])[::-1])
    a, b = (take_snapshot(catalog.connect(str(tmp_path)), name) for name in "ab")
    assert a["group_key"].to_pylist() == [f"text-0000000{group}" for group in (0, 1, 2) for _ in range(3)]
    assert a["member"].to_pylist() == [0, 2, 3] * 3
    assert a.drop_columns("dataset").equals(b.drop_columns("dataset"))
    by_hand = "\0".join(a["group_key"].to_pylist()).encode()
    for name, kind in (("member", "<i8"), ("seed", "<i8"), ("reward", "<f8"), ("crc32", "<i8")):
        by_hand += np.array(a[name].to_pylist()).astype(kind).tobytes()
    assert digest(a) == digest(b) == hashlib.blake2b(by_hand, digest_size=16).hexdigest()


def test_a_snapshot_of_before_dictionaries_is_what_it_was(tmp_path) -> None:
    for name in "ab":
        write_shard(str(tmp_path / f"dataset={name}"), 0, [r for g in (0, 1) for r in rows_of(g, [0.0, 1.0])])
    new = merge([take_snapshot(catalog.connect(str(tmp_path)), name) for name in "ab"])
    old = new.cast(pa.schema([(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type) for f in new.schema]))
    pq.write_table(new, tmp_path / "new.parquet")
    for table in (old.replace_schema_metadata(new.schema.metadata), pq.read_table(tmp_path / "new.parquet")):
        assert _checksum(table) == _checksum(new) and digest(table) == digest(new)
        ours, theirs = Reader(str(tmp_path), table), Reader(str(tmp_path), new)
        assert ours.digest == theirs.digest and list(ours.places) == list(theirs.places) and len(ours) == 4


def test_an_error_while_the_answer_comes_is_of_the_expression(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locked, "AT_ONCE", 1)
    write_shard(str(tmp_path / "dataset=a"), 0, rows_of(0, [0.0, 1.0, 0.5]))
    con = catalog.connect(str(tmp_path))
    with pytest.raises(UsageError, match="^where: .*beyond"):
        take_snapshot(con, "a", where="CASE WHEN member > 1 THEN error('beyond') ELSE true END")
    with pytest.raises(UsageError, match="^where: .*Could not convert string 'AX' to INT32"):
        take_snapshot(con, "a", where="CASE WHEN member > 1 THEN ocr_text::INT > 0 ELSE true END")


@pytest.mark.parametrize("name", ["group_key", "prompt", "tar", "offset"])
def test_members_without_what_says_where_they_are_are_refused(tmp_path, name: str) -> None:
    rows = rows_of(0, [0.0, 1.0]) + rows_of(1, [0.0, 1.0])
    write_shard(str(tmp_path / "dataset=a"), 0, [row | ({name: None} if row["seed"] == 101 else {}) for row in rows])
    for how in ({}, {"where": "reward >= 0"}):
        with pytest.raises(UsageError, match=f"^dataset a: 1 of 4 members have no {name}; .*repair"):
            take_snapshot(catalog.connect(str(tmp_path)), "a", **how)

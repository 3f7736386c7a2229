"""A member's status is a code and a reason, whichever version wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpo_data import status
from gpo_data.group import from_sample, to_sample
from gpo_data.lake import catalog
from gpo_data.lake.shard import commit
from gpo_data.lake.stage import stage
from gpo_data.lake.verify import verify
from tests.parts.shard import COLUMNS, MANIFEST, make_group

OLD = {
    "ok": ("ok", None),
    "failed: the model drew latents that are not finite": ("failed_latents", status.LATENTS_REASON),
    "failed: the reward is not a finite number": ("failed_reward", status.REWARD_REASON),
    "failed: ocr: ValueError: it's broken": ("failed_evaluator", "ocr: ValueError: it's broken"),
}


@pytest.mark.parametrize("stored", OLD)
def test_python_and_sql_read_the_old_words_alike(stored: str) -> None:
    code, reason = status.sql_split("s", "NULL::VARCHAR")
    found = duckdb.sql(f"SELECT {code}, {reason} FROM (SELECT $1 AS s)", params=[stored]).fetchall()
    assert found == [status.split(stored)] == [OLD[stored]]


def test_codes_keep_their_reasons() -> None:
    code, reason = status.sql_split("s", "r")
    for one in status.CODES:
        assert status.split(one, "why") == (one, "why")
        assert duckdb.sql(f"SELECT {code}, {reason} FROM (SELECT $1 AS s, 'why' AS r)", params=[one]).fetchall() == [
            (one, "why")
        ]


def test_a_group_without_failures_has_the_bytes_of_0_1() -> None:
    group = make_group(1)
    group.reasons = [None] * group.size
    assert "reasons" not in json.loads(to_sample(group)["group.json"])
    group.statuses[1], group.reasons[1], group.rewards[1] = status.FAILED_REWARD, "why", None
    again = from_sample(to_sample(group))
    assert (again.statuses, again.reasons) == (group.statuses, group.reasons)


def old_dataset(lake: Path) -> Path:
    """As 0.1 wrote it: a member whose reward was NULL, one that an evaluator raised on."""
    folder = lake / "dataset=x"
    (folder / ".stage").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(MANIFEST))
    group = make_group(0)
    group.statuses = ["ok", *list(OLD)[2:]]
    group.rewards = [0.5, None, None]
    stage(folder, group, "f")
    commit(folder, 0, [group.key], COLUMNS, "f")
    path = folder / "shard-000000.parquet"
    table = pq.read_table(path).drop_columns("status_reason")
    words = table.set_column(table.column_names.index("status"), "status", pa.array(group.statuses))
    pq.write_table(words, path, compression="zstd", write_page_checksum=True)
    return folder


def test_an_old_lake_has_codes_and_reasons_and_can_be_scored_again(tmp_path: Path) -> None:
    folder = old_dataset(tmp_path)
    con = catalog.connect(str(tmp_path))
    asked = "SELECT status, status_reason, reward FROM members ORDER BY member"
    assert con.execute(asked).fetchall() == [
        ("ok", None, 0.5),
        ("failed_reward", status.REWARD_REASON, None),
        ("failed_evaluator", "ocr: ValueError: it's broken", None),
    ]
    again = catalog.scored(con, "1.0 * member").execute(asked).fetchall()
    assert [row[0] for row in again] == ["ok", "ok", "failed_evaluator"]
    assert verify(folder).problems == [] and verify(folder).failed == 2


def test_old_and_new_shards_stand_side_by_side(tmp_path: Path) -> None:
    folder = old_dataset(tmp_path)
    group = make_group(1)
    group.statuses, group.reasons = ["ok", "ok", status.FAILED_LATENTS], [None, None, "why"]
    group.rewards[2] = None
    stage(folder, group, "f")
    commit(folder, 1, [group.key], COLUMNS, "f")
    counts = "SELECT status, count(*) FROM members GROUP BY 1 ORDER BY 1"
    assert catalog.connect(str(tmp_path)).execute(counts).fetchall() == [
        ("failed_evaluator", 1),
        ("failed_latents", 1),
        ("failed_reward", 1),
        ("ok", 3),
    ]

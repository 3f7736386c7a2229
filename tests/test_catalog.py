"""The catalog over real sidecars: views, measures, rescoring, snapshots, empty lakes, awkward paths and URLs."""

from __future__ import annotations

import datetime

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec import AbstractFileSystem

from gpo_data.errors import UsageError
from gpo_data.lake import catalog
from gpo_data.lake.advantage import standardise
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.tasks import TASKS
from tests.parts.lake import drawn as drawn
from tests.parts.lake import lake as lake
from tests.parts.lake import rows_of, write_measure, write_shard


def test_an_empty_or_missing_lake_has_typed_empty_views(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        con = catalog.connect(str(folder))
        for view in catalog.VIEWS:
            assert con.execute(f"SELECT * FROM {view}").fetchall() == []
        assert con.execute("SELECT avg(reward), max(ocr_text) FROM members").fetchall() == [(None, None)]


def test_the_empty_view_has_the_columns_of_a_sidecar(tmp_path, lake):
    empty = {r[0]: r[1] for r in catalog.connect(str(tmp_path / "x")).execute("DESCRIBE members").fetchall()}
    full = {r[0]: r[1] for r in catalog.connect(str(lake)).execute("DESCRIBE members").fetchall()}
    assert full.items() <= empty.items()
    assert next(iter(full)) == "dataset" and list(full)[-4:] == ["filename", "shard", "exact", "level"]


def test_the_empty_view_has_the_columns_of_every_task(tmp_path):
    empty = {r[0] for r in catalog.connect(str(tmp_path)).execute("DESCRIBE members").fetchall()}
    assert all({*kind.columns, *kind.reads()} <= empty for kind in TASKS.values())


def test_views(lake):
    con = catalog.connect(str(lake))
    assert con.execute("SELECT dataset, shard, count(*) FROM members GROUP BY ALL ORDER BY ALL").fetchall() == [
        ("a", "shard-000000", 4),
        ("a", "shard-000001", 4),
    ]
    groups = con.execute(
        "SELECT group_key, n, failed, mean, std, best_of_n, best_member, dead FROM groups ORDER BY 1"
    ).fetchall()
    assert groups[0] == ("text-00000000", 2, 0, 0.5, 0.5, 1.0, 1, False)
    assert groups[1][-1] is True and groups[1][4] == 0
    assert groups[2][:4] == ("text-00000002", 3, 1, 0.5) and groups[2][4] == pytest.approx(np.std([0, 1, 0.5]))
    shards = con.execute(
        "SELECT dataset, shard, groups, members, failed, tar_bytes, tar_sha256, fingerprint FROM shards ORDER BY shard"
    ).fetchall()
    assert shards == [
        ("a", "shard-000000", 2, 4, 0, 1024, "ab", "f00d"),
        ("a", "shard-000001", 1, 4, 1, 1024, "ab", "f00d"),
    ]
    assert con.execute("SELECT dataset, fingerprint, fields->>'seed' FROM datasets").fetchall() == [("a", "f00d", "0")]


def test_a_connection_to_one_dataset_shows_it_alone(lake):
    write_shard(str(lake / "dataset=ab"), 0, rows_of(0, [1.0, 0.0]))
    one, whole = catalog.connect(str(lake), "a"), catalog.connect(str(lake))
    none = catalog.connect(str(lake), "nothing")
    for view in catalog.VIEWS:
        assert one.execute(f"SELECT DISTINCT dataset FROM {view}").fetchall() == [("a",)]
        assert none.execute(f"SELECT DISTINCT dataset FROM {view}").fetchall() == []
        assert len(whole.execute(f"SELECT DISTINCT dataset FROM {view}").fetchall()) == 2
    assert take_snapshot(one, "a").equals(take_snapshot(whole, "a"), check_metadata=True)
    for con in (one, none, whole):
        with pytest.raises(UsageError, match="'nothing': no committed shard.*the lake has: a, ab"):
            take_snapshot(con, "nothing")


def test_a_group_of_failed_members_is_dead(tmp_path):
    write_shard(str(tmp_path / "dataset=a"), 0, rows_of(0, [None, None]))
    con = catalog.connect(str(tmp_path))
    assert con.execute("SELECT n, failed, mean, dead FROM groups").fetchall() == [(0, 2, None, True)]
    assert take_snapshot(con, "a").num_rows == 0


@pytest.mark.parametrize("name", ["it's [a] 'quoted' *lake?", 'dou"ble', "run=5/lake", "ünï code"])
def test_awkward_paths(tmp_path, name):
    write_shard(str(tmp_path / name / "dataset=007"), 0, rows_of(0, [0.0, 1.0]))
    write_measure(
        tmp_path / name / "dataset=007", "clip@1", 0, [{"group_key": "text-00000000", "member": 1, "clip_score": 0.5}]
    )
    con = catalog.connect(str(tmp_path / name))
    # A dataset's name stays text, even when it is a number.
    assert con.execute("SELECT dataset, sum(clip_score) FROM members GROUP BY 1").fetchall() == [("007", 0.5)]
    assert con.execute("SELECT tar_bytes FROM shards").fetchall() == [(1024,)]
    assert con.execute("SELECT dataset FROM datasets").fetchall() == [("007",)]
    assert "run" not in [c[0] for c in con.execute("SELECT * FROM members").description]


def test_shards_with_different_columns_are_united(tmp_path):
    write_shard(str(tmp_path / "dataset=a"), 0, rows_of(0, [0.0, 1.0]))
    counted = [r | {"target_count": 3, "n_detected": 2} for r in rows_of(0, [0.0, 1.0])]
    columns = {"target_count": pa.int32(), "n_detected": pa.int32()}
    write_shard(str(tmp_path / "dataset=b"), 0, counted, columns)
    con = catalog.connect(str(tmp_path))
    assert con.execute(
        "SELECT dataset, max(ocr_text), max(n_detected) FROM members GROUP BY 1 ORDER BY 1"
    ).fetchall() == [("a", "AX", None), ("b", None, 2)]
    con = catalog.scored(con, "count_exact(target_count, n_detected)", "b")
    assert con.execute(
        "SELECT dataset, sum(reward), sum(failed) FROM shards JOIN members USING (dataset) GROUP BY 1 ORDER BY 1"
    ).fetchall() == [("a", 1.0, 0), ("b", 0.0, 0)]


def test_measures_join_and_the_newest_value_wins(lake):
    keys = {"group_key": "text-00000000"}
    folder = lake / "dataset=a"
    write_measure(
        folder, "clip@2", 0, [keys | {"member": 0, "clip_score": 0.2}, keys | {"member": 1, "clip_score": 0.3}]
    )
    write_measure(folder, "clip@10", 0, [keys | {"member": 0, "clip_score": 0.9, "ocr_text": "ZZ"}])
    write_measure(folder, "odd@1", 0, [keys | {"member": 0, "ocr_text": 5}])
    con = catalog.connect(str(lake))
    rows = con.execute(
        'SELECT clip_score, ocr_text, "ocr_text__odd@1" FROM members '
        "WHERE group_key = 'text-00000000' ORDER BY member"
    ).fetchall()
    assert rows == [(0.9, "ZZ", 5), (0.3, "AB", None)]
    assert con.execute("SELECT count(*), count(clip_score) FROM members").fetchall() == [(8, 2)]


def test_groups_say_what_was_asked_and_how_often_it_was_right(lake):
    con = catalog.connect(str(lake))
    said = con.execute("SELECT group_key, target, level, exact_rate FROM groups ORDER BY 1").fetchall()
    members = con.execute(
        "SELECT group_key, min(target), min(level), avg(exact::INT) FROM members WHERE status = 'ok' "
        "GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert said == members and {row[3] for row in said} > {0.5}
    table = take_snapshot(con, "a", where="exact_rate = 0.5 AND level = 2 AND std > 0")
    assert set(table["group_key"].to_pylist()) == {row[0] for row in said if row[2:] == (2, 0.5)} != set()


def test_another_reward_is_another_relation_and_changes_nothing(lake):
    con = catalog.connect(str(lake))
    questions = [
        "SELECT * FROM groups ORDER BY ALL",
        "SELECT avg(reward) FROM members",
        "SELECT * FROM shards ORDER BY ALL",
    ]
    before = [con.execute(question).fetchall() for question in questions]
    whole = con
    con = catalog.scored(whole, "text_edit(target, ocr_text) -- strict")
    assert con.execute("SELECT DISTINCT reward FROM members WHERE status = 'ok' ORDER BY 1").fetchall() == [
        (0.5,),
        (1.0,),
    ]
    assert con.execute("SELECT mean FROM groups WHERE group_key = 'text-00000001'").fetchall() == [(0.5,)]
    assert con.execute("SELECT reward FROM members WHERE status <> 'ok'").fetchall() == [(None,)]
    con = catalog.scored(whole, "CASE WHEN member = 0 THEN 'nan'::DOUBLE ELSE true::INT END")
    assert con.execute("SELECT sum(failed) FROM groups").fetchall() == [(4,)]
    take_snapshot(whole, "a", reward="0.0 + member")
    for unchanged in (whole, catalog.scored(whole, None)):
        assert [unchanged.execute(question).fetchall() for question in questions] == before


def test_members_say_whether_they_are_exact_and_how_hard_their_prompt_was(tmp_path):
    write_shard(str(tmp_path / "dataset=a"), 0, rows_of(0, [0.0, 1.0]))
    counted = [
        r | {"group_key": "count-00000000", "target_count": 3, "n_detected": n}
        for r, n in zip(rows_of(0, [0.0, 1.0]), (2, 3), strict=True)
    ]
    con = catalog.connect(str(tmp_path))
    asked = "SELECT dataset, member, exact, level FROM members ORDER BY ALL"
    levels = con.execute("SELECT DISTINCT level, typeof(exact) FROM members").fetchall()
    assert levels == [(len(rows_of(0, [0.0])[0]["target"]), "BOOLEAN")]
    write_shard(str(tmp_path / "dataset=b"), 0, counted, {"target_count": pa.int32(), "n_detected": pa.int32()})
    con = catalog.connect(str(tmp_path))  # two tasks in one lake, each by its own definition
    assert con.execute(f"{asked.replace('FROM members', 'FROM members WHERE dataset = $1')}", ["b"]).fetchall() == [
        ("b", 0, False, 3),
        ("b", 1, True, 3),
    ]


def test_the_extremes_keep_the_advantages_that_they_have_among_all(tmp_path):
    write_shard(str(tmp_path / "dataset=a"), 0, rows_of(0, [0.0, 0.4, 0.5, 0.6, 1.0]))
    whole, few = (take_snapshot(catalog.connect(str(tmp_path)), "a", members=n) for n in (None, 2))
    assert few["member"].to_pylist() == [0, 4] and whole.num_rows == 5
    assert few["advantage"].to_pylist() == [whole["advantage"].to_pylist()[i] for i in (0, 4)]
    assert few.schema.metadata[b"digest"] != whole.schema.metadata[b"digest"]


def test_rewards_that_differ_by_rounding_are_one_reward(tmp_path):
    write_shard(str(tmp_path / "dataset=a"), 0, rows_of(0, [0.1 + 0.2, 0.3, 0.3, 0.3]))
    con = catalog.connect(str(tmp_path))
    assert con.execute("SELECT dead, std FROM groups").fetchall() == [(True, 0.0)]
    assert take_snapshot(con, "a").schema.metadata[b"dead_groups"] == b"1"
    assert take_snapshot(con, "a", keep_dead=True)["advantage"].to_pylist() == [0, 0, 0, 0]


@pytest.mark.parametrize("reward", ["text_edit(target, ocr_txt)", "avg(reward)", "target", "(1", "nonsense(1)", ""])
def test_a_bad_expression_is_a_usage_error(lake, reward):
    with pytest.raises(UsageError, match="^reward: ") as error:
        catalog.scored(catalog.connect(str(lake)), reward)
    assert "\n" not in str(error.value)


def test_snapshot(lake):
    con = catalog.connect(str(lake))
    table = take_snapshot(con, "a")
    assert table["group_key"].to_pylist() == ["text-00000000"] * 2 + ["text-00000002"] * 3
    assert table["member"].to_pylist() == [0, 1, 0, 2, 3]
    spread = np.std([0, 1, 0.5])
    expected = [-1, 1, -0.5 / spread, 0.5 / spread, 0]
    assert table["advantage"].to_pylist() == pytest.approx(expected)
    facts = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert facts.pop("digest") == take_snapshot(catalog.connect(str(lake)), "a").schema.metadata[b"digest"].decode()
    assert facts == {"groups": "2", "dead_groups": "1", "failed_members": "1"}


def test_snapshot_with_another_reward_and_condition(lake):
    con = catalog.connect(str(lake))
    stored = take_snapshot(con, "a")
    edit = take_snapshot(con, "a", reward="text_edit(target, ocr_text)")
    assert edit.schema.metadata[b"digest"] != stored.schema.metadata[b"digest"]
    assert edit["reward"].to_pylist() == [0.5, 1.0, 0.5, 1.0, 0.5]
    some = take_snapshot(con, "a", where="mean < 0.9 AND n = 2 -- pairs")
    assert set(some["group_key"].to_pylist()) == {"text-00000000"}
    assert take_snapshot(con, "a").equals(stored)
    with pytest.raises(UsageError, match="^where: 'nope = 1'"):
        take_snapshot(con, "a", where="nope = 1")
    with pytest.raises(UsageError, match="the lake has: a$"):
        take_snapshot(con, "b")


def test_groups_borrow_members_and_judge_them_by_their_own_target(tmp_path):
    words = ("AX", "AB", "QQ")  # rows_of reads AB where the reward is 1, AX elsewhere
    write_shard(str(tmp_path / "dataset=a"), 0, [r for g, w in enumerate(words) for r in rows_of(g, [0.0, 1.0], w)])
    write_shard(str(tmp_path / "dataset=b"), 0, rows_of(0, [0.0, 1.0]))
    con = catalog.connect(str(tmp_path))
    how = {"reward": "text_exact(target, ocr_text)", "targets": ("target", "color")}
    table = take_snapshot(con, "a", relabel="left(lender.target, 1) = left(borrower.target, 1) -- alike", **how)
    found = [(r["group_key"][-1], r["lender"][-1], r["member"], r["reward"], r["seed"]) for r in table.to_pylist()]
    first = [("0", "0", 0, 1, 0), ("0", "0", 1, 0, 1), ("0", "1", 0, 1, 100), ("0", "1", 1, 0, 101)]
    second = [("1", "1", 0, 0, 100), ("1", "1", 1, 1, 101), ("1", "0", 0, 0, 0), ("1", "0", 1, 1, 1)]
    assert found == first + second
    assert set(table["prompt"].to_pylist()) == {"prompt 0", "prompt 1"}  # the third reads neither: dead
    assert con.execute("SELECT count(*) FROM members WHERE dataset = 'b'").fetchall() == [(2,)]
    assert "lender" not in take_snapshot(catalog.connect(str(tmp_path)), "a").column_names
    own = take_snapshot(catalog.connect(str(tmp_path)), "a", relabel="true", where="lender = group_key", **how)
    plain = take_snapshot(catalog.connect(str(tmp_path)), "a", reward=how["reward"])
    assert own.drop_columns("lender").equals(plain)
    with pytest.raises(UsageError, match="^relabel: expected a reward beside it"):  # stored ones are of other targets
        take_snapshot(con, "a", relabel="true", targets=("target", "color"))
    with pytest.raises(UsageError, match="^relabel: 'lender.target::INT = 1': Conversion Error"):  # found only by doing
        take_snapshot(con, "a", relabel="lender.target::INT = 1", **how)
    with pytest.raises(UsageError, match="^relabel: 'lender.n = 1': .*; columns of borrower and lender: group_key, "):
        take_snapshot(con, "a", relabel="lender.n = 1", **how)


def test_borrowed_members_are_judged_by_all_that_the_borrowers_row_says(tmp_path):
    columns = {"target": pa.string(), "color": pa.string(), "bonus": pa.int64(), "label": pa.float64()}
    columns |= {"entropy": pa.float64(), "ocr_text": pa.string()}
    more = {"entropy": 1.0, "ocr_text": "AB"}
    rows = [row | more | {"bonus": g, "label": float(i)} for g in range(3) for i, row in enumerate(rows_of(g, [0, 1]))]
    write_shard(str(tmp_path / "dataset=a"), 0, rows, columns)
    how = {"reward": "bonus + 10 * label", "relabel": "lender.bonus >= borrower.bonus", "targets": ("target", "color")}
    table = take_snapshot(catalog.connect(str(tmp_path)), "a", **how)
    found = [(row["group_key"][-1], row["lender"][-1], row["reward"]) for row in table.to_pylist()]
    # The label is of each picture, the bonus of a prompt.
    pairs = [("0", "0"), ("0", "1"), ("0", "2"), ("1", "1"), ("1", "2"), ("2", "2")]
    assert found == [(mine, lender, int(mine) + label) for mine, lender in pairs for label in (0, 10)]


def test_of_the_best_and_worst_members_one_is_the_groups_own(tmp_path):
    own, lent = rows_of(0, [0.0] * 4), rows_of(1, [0.0, 1.0, 1.0, 0.0], "AX")
    write_shard(str(tmp_path / "dataset=a"), 0, own + lent)
    how = {
        "reward": "text_exact(target, ocr_text)",
        "relabel": "borrower.target = 'AB'",
        "targets": ("target", "color"),
    }
    table = take_snapshot(catalog.connect(str(tmp_path)), "a", where="group_key < 'text-00000001'", members=4, **how)
    found = [(row["lender"][-1], row["reward"]) for row in table.to_pylist()]
    assert sorted(found) == [("0", 0.0), ("1", 0.0), ("1", 1.0), ("1", 1.0)]


def test_advantages_have_mean_0_and_std_1_in_every_living_group():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(50), 32)
    rewards = rng.choice([0.1, 0.3, 0.7], size=group.size)
    rewards[group == 7] = 0.1
    advantages, alive = standardise(group, rewards, 50)
    assert not alive[7] and alive.sum() == 49
    table = advantages.reshape(50, 32)[alive]
    np.testing.assert_allclose(table.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(table.std(1), 1, atol=1e-12)


def test_a_lake_behind_a_url():
    files = fsspec.filesystem("memory")
    files.store.clear()
    write_shard("/bucket/lake/dataset=a", 0, rows_of(0, [0.0, 1.0]), files=files)
    con = catalog.connect("memory://bucket/lake")
    assert con.execute("SELECT dataset, count(*) FROM members GROUP BY 1").fetchall() == [("a", 2)]
    assert con.execute("SELECT tar_bytes FROM shards").fetchall() == [(1024,)]
    assert con.execute("SELECT fingerprint FROM datasets").fetchall() == [("f00d",)]
    assert take_snapshot(con, "a").num_rows == 2
    assert catalog.connect("memory://bucket/empty").execute("SELECT * FROM members").fetchall() == []
    with pytest.raises(UsageError, match="lake: nosuch://x"):
        catalog.connect("nosuch://x")


class Bucket(AbstractFileSystem):
    """An object store of two schemes, which names its objects without a slash in front, as S3 does; over memory."""

    protocol, cachable = ("bucket", "pail"), False

    def ls(self, path, detail=True, **kwargs):
        found = fsspec.filesystem("memory").ls("/" + self._strip_protocol(path), detail=True)
        entries = [entry | {"name": entry["name"].lstrip("/")} for entry in found]
        return entries if detail else [entry["name"] for entry in entries]

    def modified(self, path):
        return datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    def _open(self, path, mode="rb", **kwargs):
        return fsspec.filesystem("memory").open("/" + self._strip_protocol(path), mode)


@pytest.mark.parametrize("lake", ["memory://store/lake", "bucket://store/lake", "pail://store/lake"])
def test_a_url_lake_is_locked_like_a_folder(lake, tmp_path):
    for scheme in Bucket.protocol:
        fsspec.register_implementation(scheme, Bucket, clobber=True)
    files = fsspec.filesystem("memory")
    files.store.clear()
    write_shard("/store/lake/dataset=a", 0, rows_of(0, [0.0, 1.0]), files=files)
    files.pipe("/store/secret.csv", b"a\n1\n")
    (tmp_path / "secret.csv").write_text("a\n1\n")
    con = catalog.connect(lake, "a")
    assert take_snapshot(con, "a", reward="1.0 * member", where="ocr_text <> ''").num_rows == 2
    assert catalog.ask(lake, "SELECT dataset, fingerprint FROM datasets").to_pylist() == [
        {"dataset": "a", "fingerprint": "f00d"}
    ]
    for place in (tmp_path, lake.partition("://")[0] + "://store"):
        with pytest.raises(UsageError, match="only reads the lake, found read_text"):
            take_snapshot(con, "a", where=f"(SELECT count(*) FROM read_text('{place}/secret.csv')) > 0")
        with pytest.raises(duckdb.PermissionException):  # the connection itself, whoever asks
            con.execute(f"SELECT * FROM read_text('{place}/secret.csv')")


def test_a_damaged_sidecar_is_named(lake):
    (lake / "dataset=a" / "shard-000001.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UsageError, match="shard-000001.parquet.*verify"):
        catalog.connect(str(lake))

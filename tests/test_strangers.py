"""A recipe from a stranger is data: its SQL reads the lake alone, writes nothing, and ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gpo_data.audit import members as audit_members
from gpo_data.errors import UsageError
from gpo_data.lake import catalog, locked, rewards
from gpo_data.lake.lake import Lake
from gpo_data.lake.snapshot import take_snapshot
from tests.parts.lake import rows_of, write_shard

ROOT = Path(__file__).parents[1]
COLUMNS = {"target": pa.string(), "ocr_text": pa.string()}
FOREVER = "(SELECT count(*) FROM range(1000000000000))"

# {base} is a folder beside the lake with a file secret.csv in it; {lake} is the lake.
EXPRESSIONS = {
    "reads a file": "(SELECT count(*) FROM read_text('{base}/secret.csv'))",
    "reads a table of a file": "(SELECT count(*) FROM '{base}/secret.csv')",
    "climbs out of the lake": "(SELECT count(*) FROM read_text('{lake}/../secret.csv'))",
    "lists files": "(SELECT count(*) FROM glob('{base}/*'))",
    "reaches the network": "(SELECT count(*) FROM read_csv('https://example.com/x.csv'))",
    "writes in a WITH": "(WITH x AS (COPY (SELECT 1) TO '{lake}/out.csv') SELECT count(*) FROM x)",
    "writes in a WITH of an upper query": "1) FROM x UNION (WITH x AS (COPY (SELECT 1) TO '{lake}/out.csv') SELECT 1",
    "ends the expression": "1) FROM read_text('{base}/secret.csv') WHERE (true",
    "hides the end in a comment": "1) FROM read_text('{base}/secret.csv') --",
    "opens a comment": "1 /* ",
    "unites": "1) UNION (SELECT 2",
    "two columns": "1), (2",
    "another clause": "1) LIMIT (1",
    "a second statement": "1; COPY (SELECT 1) TO '{lake}/out.csv'",
    "a second statement after a comment": "1 -- x\n; ATTACH '{lake}/y.db'",
    "a parameter": "$1",
    "another parameter": "?",
    "the environment": "getenv('HOME') = ''",
    "a setting": "(SELECT count(*) FROM enable_logging(storage = 'file', storage_path = '{lake}/log'))",
    "SQL in a text": "(SELECT count(*) FROM query('FROM x'))",
    "SQL in JSON": "(SELECT count(*) FROM json_execute_serialized_sql(json_serialize_sql('FROM x')))",
    "an address": "(SELECT count(*) FROM arrow_scan(1, 2, 3))",
    "an address in an argument": "(SELECT count(*) FROM range((SELECT count(*) FROM pandas_scan(1))))",
    "an address under a name": '(SELECT count(*) FROM range(3) AS range(arrow_scan), "Arrow_Scan"(1, 2, 3))',
    "sleeps": "sleep_ms(3600000) IS NULL",
    "a very deep one": "(" * 20_000 + "1" + ")" * 5_000,
    "a deep one": "(" * 5_000 + "1" + ")" * 5_000,
    "a long list": "abs(" * 4_000 + "1" + ")" * 4_000,
    "a huge text": "length(repeat('x', 100000000000))",
    "a huge list": "list_sum(range(1000000000000)) > 0",
    "without end": FOREVER + " > 0",
    "without end again": "(WITH RECURSIVE r AS (SELECT 1 a UNION ALL SELECT a FROM r) SELECT count(*) FROM r) = 0",
}

ONLY_ON_ROWS = {"a huge text", "a huge list"}  # what a check of the columns does not see

STATEMENTS = {
    "reads a file": "SELECT * FROM read_text('{base}/secret.csv')",
    "reads a table of a file": "FROM '{base}/secret.csv'",
    "writes a file": "COPY (SELECT 1) TO '{base}/out.csv'",
    "writes into the lake": "COPY (SELECT 1) TO '{lake}/out.csv'",
    "writes in a WITH": "WITH x AS (COPY (SELECT 1) TO '{lake}/out.csv') SELECT * FROM x",
    "writes while it explains": "EXPLAIN ANALYZE COPY (SELECT 1) TO '{lake}/out.csv'",
    "writes while it explains a WITH": "EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '{lake}/out.csv') FROM x",
    "explains with options": "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{lake}/out.csv'",
    "exports": "EXPORT DATABASE '{lake}/out'",
    "attaches": "ATTACH '{lake}/y.db'",
    "installs": "INSTALL httpfs",
    "loads": "LOAD httpfs",
    "sets": "SET memory_limit = '99GB'",
    "resets": "RESET lock_configuration",
    "a pragma": "PRAGMA enable_profiling = 'json'",
    "a call": "CALL enable_logging(storage = 'file', storage_path = '{lake}/log')",
    "a secret": "CREATE PERSISTENT SECRET s (TYPE s3)",
    "two statements": "SELECT 1; COPY (SELECT 1) TO '{lake}/out.csv'",
    "inserts": "WITH x AS (INSERT INTO no_members VALUES (1)) FROM x",
    "writes in a query of a text": "FROM query('WITH x AS (COPY (SELECT 1) TO ''{lake}/out.csv'') FROM x')",
    "writes in a query of JSON": "FROM json_execute_serialized_sql(json_serialize_sql("
    "'WITH x AS (COPY (SELECT 1) TO ''{lake}/out.csv'') FROM x'))",
    "an address": "FROM arrow_scan(1, 2, 3)",
    "an address behind another": "SELECT * FROM range(3) r, LATERAL (FROM pandas_scan(1))",
    "writes a log": "FROM enable_logging(storage = 'file', storage_path = '{lake}/log')",
    "nothing": "-- nothing",
}


@pytest.fixture
def lake(tmp_path: Path) -> str:
    write_shard(str(tmp_path / "lake/dataset=a"), 0, rows_of(0, [0.0, 1.0]) + rows_of(1, [0.5, 0.25], "AX"))
    (tmp_path / "lake/dataset=a/dataset.json").write_text(
        '{"fingerprint": "f00d", "recipe": {"model": "tiny", "task": {"kind": "text"}}}'
    )
    (tmp_path / "secret.csv").write_text("a\n1\n")
    return str(tmp_path / "lake")


def ask_all(lake: str, text: str) -> list[Callable[[], Any]]:
    """Everything that evaluates an expression of a recipe."""
    con = catalog.connect(lake, "a")
    how: dict[str, Any] = {"reward": "1.0 * member", "targets": ("target",)}
    return [
        lambda: rewards.check(text, COLUMNS),
        lambda: rewards.score([{"target": "AB", "ocr_text": "AB"}], text, COLUMNS),
        lambda: take_snapshot(con, "a", reward=text),
        lambda: take_snapshot(con, "a", where=text),
        lambda: take_snapshot(con, "a", relabel=text, **how),
        lambda: Lake(lake)["a"].members(where=text),
        lambda: Lake(lake)["a"].members(reward=text),
        lambda: audit_members.read(lake, "a", None, text),
        lambda: audit_members.read(lake, "a", text, None),
    ]


def tree(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_size) for path in folder.rglob("*")}


def refuses(question: Callable[[], Any]) -> None:
    with pytest.raises(UsageError) as error:
        question()
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500


@pytest.mark.parametrize("kind", EXPRESSIONS)
def test_a_hostile_expression_is_refused_in_one_line_everywhere(
    kind: str, lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind.startswith("without end"):
        monkeypatch.setattr(locked, "SECONDS", 0.3)
    text = EXPRESSIONS[kind].replace("{base}", str(tmp_path)).replace("{lake}", lake)
    before = tree(tmp_path)
    for question in ask_all(lake, text)[kind in ONLY_ON_ROWS :]:
        refuses(question)
    assert tree(tmp_path) == before


def test_a_query_has_an_end(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locked, "SECONDS", 0.3)
    with pytest.raises(UsageError, match="query: expected an answer within 0.3 s, found none"):
        catalog.ask(lake, "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b")


@pytest.mark.parametrize("kind", STATEMENTS)
def test_a_hostile_query_is_refused_in_one_line(
    kind: str, lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    query = STATEMENTS[kind].replace("{base}", str(tmp_path)).replace("{lake}", lake)
    before = tree(tmp_path)
    refuses(lambda: catalog.ask(lake, query))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    [
        "text_edit(target, ocr_text) > 0.1 -- half a line",
        "/* ) */ member >= 0",
        "target IN ('A;B', 'AB', 'AX') AND prompt NOT LIKE '%--%'",
        "CASE WHEN member = 0 THEN true ELSE ocr_text <> '' END",
        "len(list_transform([1, 2], lambda x: x + member)) > 0",
        " OR ".join(f"member = {i}" for i in range(300)),
    ],
)
def test_good_expressions_go_on_working(text: str, lake: str) -> None:
    con = catalog.connect(lake, "a")
    assert take_snapshot(con, "a", where=text).num_rows == 4
    assert take_snapshot(con, "a", where=text).equals(take_snapshot(con, "a"))
    assert Lake(lake)["a"].members(where=text, reward=f"({text}\n)::INT + 0.5 * member").num_rows == 4


def test_a_condition_may_ask_the_lake(lake: str) -> None:
    con = catalog.connect(lake, "a")
    where = "reward >= (SELECT avg(reward) FROM members)"
    assert take_snapshot(con, "a", where=where, keep_dead=True)["reward"].to_pylist() == [1.0, 0.5]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM members;",
        "FROM groups",
        "WITH x AS (SELECT * FROM members) SELECT max(reward) FROM x",
        "DESCRIBE members",
        "SUMMARIZE groups",
        "SHOW TABLES",
        "EXPLAIN SELECT * FROM members",
        "explain analyze\n SELECT * FROM members",
        "VALUES (1), (2)",
        "SELECT ';' -- and a comment",
        "SELECT function_name FROM duckdb_functions()",
        "SELECT unnest([1, 2]) FROM range(2)",
    ],
)
def test_good_queries_go_on_working(query: str, lake: str) -> None:
    assert catalog.ask(lake, query).num_rows


def test_unsafe_is_the_users_own_affair(lake: str, tmp_path: Path) -> None:
    catalog.ask(lake, f"COPY (SELECT 42 AS x) TO '{tmp_path}/out.csv'", unsafe=True)
    assert (tmp_path / "out.csv").read_text() == "x\n42\n"
    assert catalog.ask(lake, f"FROM '{tmp_path}/out.csv'", unsafe=True).to_pylist() == [{"x": 42}]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_hands_a_query_on_as_it_is(tmp_path: Path) -> None:
    """Neither make nor the shell expands what stands in Q; a stand-in for gpo-data prints its arguments."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "pyproject.toml", ".venv/.ready"):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / "requirements.txt", (1, 1))
    os.utime(tmp_path / "pyproject.toml", (1, 1))
    program = tmp_path / ".venv/bin/gpo-data"
    program.write_text('#!/bin/sh\nfor one in "$@"; do printf "%s\\n" "<$one>"; done\n')
    program.chmod(0o755)
    of_make = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "ARGS")  # under `make test ARGS=...`
    alone = {k: v for k, v in os.environ.items() if k not in of_make}

    def make(*arguments: str) -> str:
        command = ["make", "sql", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=True).stdout

    for query in (
        "select `touch made` \"a\" from members where x = 'y'",
        "select $(touch made) $HOME \\ ; touch made",
        "select $(shell touch made) $$ # x",
        "select 1 %",
    ):
        said = make(f"Q={query}")
        assert said == f"<sql>\n<recipes/text-tiny.yaml>\n<{query}>\n" and not (tmp_path / "made").exists()
    said = make()
    assert said == "<sql>\n<recipes/text-tiny.yaml>\n"

"""SQL from the command line: formats, mistakes, the prompt."""

from __future__ import annotations

import json
import os
import subprocess

import duckdb
import pyarrow.parquet as pq
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from gpo_data.errors import RunError, UsageError
from gpo_data.lake import locked
from gpo_data.lake import shell as query
from tests.parts.disk import needs_mount, small_disk
from tests.parts.lake import drawn as drawn
from tests.parts.lake import lake as lake


def test_a_query_in_every_format(lake, capsys, tmp_path):
    sql = "SELECT group_key, mean, [1.5, 'nan'::DOUBLE] AS nested, '[x]' AS markup FROM groups ORDER BY 1 LIMIT 1"
    query.run(str(lake), sql)
    shown = capsys.readouterr().out
    assert "text-00000000" in shown and "[x]" in shown and "1 row" in shown
    query.run(str(lake), sql, "csv")
    assert capsys.readouterr().out == 'group_key,mean,nested,markup\ntext-00000000,0.5,"[1.5, null]",[x]\n'
    query.run(str(lake), sql, "json")
    assert json.loads(capsys.readouterr().out) == [
        {"group_key": "text-00000000", "mean": 0.5, "nested": [1.5, None], "markup": "[x]"}
    ]
    query.run(str(lake), sql, "parquet", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["mean"].to_pylist() == [0.5]
    query.run(str(lake), "SELECT sum(i) AS n, 0.25::DECIMAL(4, 2) AS part FROM range(3) AS r(i)", "json")
    assert json.loads(capsys.readouterr().out) == [{"n": 3, "part": 0.25}]
    query.run(str(lake), "SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a", "json")
    assert json.loads(capsys.readouterr().out) == [{"a": 1, "a_1": 2, "a_1_1": 3, "a_2": 4}]
    query.run(str(lake), "SELECT max(mean) AS m FROM groups", "csv", reward="text_exact(target, ocr_text)")
    assert capsys.readouterr().out == "m\n0.5\n"
    query.run(str(lake), "SELECT * FROM range(500)")
    assert "300 more not shown" in capsys.readouterr().out


def test_a_file_is_of_the_kind_that_its_name_says(lake, tmp_path):
    for name, head in (
        ("a.csv", b"m\n0.5"),
        ("a.JSON", b"[\n {\n"),
        ("a.parquet", b"PAR1"),
        ("a.txt", "\u250f".encode()),
    ):
        query.run(str(lake), "SELECT max(mean) AS m FROM groups", out=tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(head), name
    query.run(str(lake), "SELECT max(mean) AS m FROM groups", "csv", tmp_path / "b.parquet")
    assert (tmp_path / "b.parquet").read_bytes().startswith(b"m\n0.5")


def test_ctrl_c_stops_a_question_and_not_the_prompt(lake, capsys, monkeypatch):
    """DuckDB's Python package makes a RuntimeError of it."""
    for told, kind in (("Query interrupted", KeyboardInterrupt), ("another", RuntimeError)):
        with pytest.raises(kind), locked.stopped_by_ctrl_c():
            raise RuntimeError(told)
        with pytest.raises(kind), locked.time_limit(duckdb.connect(), "query"):
            raise RuntimeError(told)

    def stopped(*asked, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(query.catalog, "ask", stopped)
    query.answer(str(lake), "SELECT 1", "table", None, Console())
    assert "stopped" in capsys.readouterr().out


def test_query_mistakes_are_one_line(lake, tmp_path):
    for sql in ("SELECT nope FROM members", "SELEC 1", "SELECT * FROM member"):
        with pytest.raises(UsageError, match="^query: .*; views: members, groups, shards, datasets$") as error:
            query.run(str(lake), sql)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="--out FILE"):
        query.run(str(lake), "SELECT 1", "parquet")
    with pytest.raises(UsageError, match="--format parquet: .*; CAST the column"):
        query.run(str(lake), "SELECT INTERVAL 1 DAY AS day", "parquet", tmp_path / "day.parquet")
    assert not (tmp_path / "day.parquet").exists()
    with pytest.raises(UsageError, match="--format"):
        query.run(str(lake), "SELECT 1", "xml")
    with pytest.raises(UsageError, match="--out .*nowhere"):
        query.run(str(lake), "SELECT 1", "csv", tmp_path / "nowhere" / "x.csv")
    with pytest.raises(UsageError, match="--out .*: expected a file's name, found a folder"):
        query.run(str(lake), "SELECT 1", "csv", tmp_path)
    with pytest.raises(UsageError, match="found nothing"):
        query.run(str(lake), " ; ")


@needs_mount
def test_a_full_disk_keeps_the_answer_that_was_there(lake, tmp_path):
    with small_disk(disk := tmp_path / "disk", "160k"):
        out = disk / "x.csv"
        query.run(str(lake), "SELECT 1 AS n", out=out)
        with pytest.raises(RunError, match=r"x\.csv: cannot write: No space left on device") as error:
            query.run(str(lake), "SELECT * FROM range(100000)", out=out)
        assert error.value.exit_code == 1
        assert [path.name for path in disk.iterdir()] == ["x.csv"] and out.read_text() == "n\n1\n"


def test_the_answer_goes_through_a_link_and_into_a_pipe(lake, tmp_path):
    link, pipe = tmp_path / "link.csv", tmp_path / "pipe.csv"
    link.symlink_to(tmp_path / "file.csv")
    os.mkfifo(pipe)
    query.run(str(lake), "SELECT 1 AS n", out=link)
    assert link.is_symlink() and (tmp_path / "file.csv").read_text() == "n\n1\n"
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        query.run(str(lake), "SELECT 2 AS n", out=pipe)
        assert reader.communicate(timeout=60)[0] == "n\n2\n" and pipe.is_fifo()


def test_datasets_go_by_pattern_and_other_files_are_unsafe(lake, capsys):
    count = "SELECT count(*) AS n FROM members"
    query.run(str(lake), count, "csv")
    everything = capsys.readouterr().out
    (name,) = (path.name.removeprefix("dataset=") for path in lake.glob("dataset=*"))
    for pattern in (name, f"{name[:2]}*", "*"):
        query.run(str(lake), count, "csv", dataset=[pattern])
        assert capsys.readouterr().out == everything
    with pytest.raises(UsageError, match=rf"--dataset: no dataset of .* matches 'x\*'; there are: {name}"):
        query.run(str(lake), count, dataset=["x*"])
    with pytest.raises(UsageError, match="Permission Error.*; `--unsafe` reads other files"):
        query.run(str(lake), f"SELECT * FROM read_text('{__file__}')")
    query.run(str(lake), f"SELECT 'found' AS f FROM read_text('{__file__}')", "csv", unsafe=True)
    assert capsys.readouterr().out == "f\nfound\n"


def test_the_prompt_answers_keeps_history_and_survives_mistakes(lake, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("SELECT 40 + 2 AS answer\n.tables\nSELECT nope\n.what\n\n.quit\n")
        query.prompt(str(lake))
    shown = capsys.readouterr().out
    assert "42" in shown and "members" in shown and "nope" in shown and "unknown command .what" in shown
    assert "SELECT 40 + 2" in query.history_file().read_text()

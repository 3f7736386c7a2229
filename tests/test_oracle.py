"""The oracle's groups: rendered, imported, and trained on like any others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpo_data import cli
from gpo_data.evaluators import blobs, glyphs
from gpo_data.lake import catalog
from gpo_data.lake.shard import sidecars
from gpo_data.lake.sidecar import read_rows
from gpo_data.recipe import Task, load
from gpo_data.split import part_of
from gpo_data.tasks import TASKS
from gpo_data.tiny.oracle import main

SMALL = ["--group_size", "4", "--task.num_prompts", "3"]


def rows(folder: Path, name: str = "metadata") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_half_of_a_group_is_right_and_the_rest_is_wrong_by_one(tmp_path: Path) -> None:
    assert main(["text-tiny", "--out", str(tmp_path / "words"), *SMALL]) == 0
    found = rows(tmp_path / "words")
    assert [row["file_name"] for row in found[:2]] == ["00000-000.png", "00000-001.png"] and len(found) == 12
    drawn = TASKS["text"].prompts(load("text-tiny", SMALL).task, 0)
    assert list(dict.fromkeys(row["prompt"] for row in found)) == [prompt.text for prompt in drawn]
    for number, row in enumerate(found):
        word = glyphs.read(picture(tmp_path / "words" / row["file_name"]))[0]
        differing = sum(a != b for a, b in zip(word, row["target"], strict=True))
        assert differing == (0 if number % 4 < 2 else 1)
    assert main(["count-tiny", "--out", str(tmp_path / "things"), "--right", "0.75", *SMALL]) == 0
    for number, row in enumerate(rows(tmp_path / "things")):
        off = abs(blobs.count(picture(tmp_path / "things" / row["file_name"])) - row["target"])
        assert off == (0 if number % 4 < 3 else 1)
    assert main(["text-tiny", "--out", str(tmp_path / "again"), *SMALL]) == 0
    for row in found:
        assert (tmp_path / "again" / row["file_name"]).read_bytes() == (
            tmp_path / "words" / row["file_name"]
        ).read_bytes()


def test_prompts_that_have_a_letter_or_a_number_of_all_parts(tmp_path: Path) -> None:
    assert main(["text-tiny", "--out", str(tmp_path / "q"), "--having", "Q", "--right", "1", *SMALL]) == 0
    assert all("Q" in row["target"] and part_of(row["target"]) == "train" for row in rows(tmp_path / "q"))
    task = Task(prompts=str(tmp_path / "q" / "prompts.jsonl"), num_prompts=None)
    assert [one.text for one in TASKS["text"].prompts(task, 0)][:3] == list(
        dict.fromkeys(row["prompt"] for row in rows(tmp_path / "q"))
    )
    assert {part_of(row["target"]) for row in rows(tmp_path / "q", "prompts")} == {"train", "validation", "heldout"}
    own = ["--task.prompts", str(tmp_path / "q" / "prompts.jsonl"), "--having", "Q"]
    assert main(["text-tiny", "--out", str(tmp_path / "own"), "--right", "1", *own, *SMALL]) == 0
    assert rows(tmp_path / "own") == rows(tmp_path / "q")
    (tmp_path / "one.csv").write_text("prompt,target,color\na sign,KITE,red\n")
    own = ["--task.prompts", str(tmp_path / "one.csv"), "--task.num_prompts", "1", "--task.split", "all"]
    assert main(["text-tiny", "--out", str(tmp_path / "one"), *own]) == 0
    assert main(["count-tiny", "--out", str(tmp_path / "six"), "--having", "6", *SMALL]) == 0
    assert {row["target"] for row in rows(tmp_path / "six", "prompts")} == {6}


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["text-sdxl"], "expected task.kind text or count with task.grammar signs"),
        (["text-tiny", "--right", "0"], "--right: expected a share above 0"),
        (["text-tiny", "--right", "0.01", *SMALL], "found 0 right ones of 4 for 0.01; give 0.25 to 0.75, or 1"),
        (["text-tiny", "--right", "0.99"], "found 32 right ones of 32 for 0.99"),
        (["text-tiny", "--having", "q"], "--having: expected a letter A-Z, which prompts of task.kind text have"),
        (["text-tiny", "--having", "6"], "--having: expected a letter A-Z, which prompts of task.kind text have"),
        (["count-tiny", "--having", "A"], "--having: expected a number 1-6, which prompts of task.kind count have"),
        (["count-tiny", "--having", "6"], "task.num_prompts: expected at most"),
        (["text-tiny", "--task.num_promts", "3"], "did you mean"),
        (["text-tiny", "--out", "/proc/x/y"], "--out /proc/x/y: cannot make this folder: No such file or directory"),
        (["text-tiny", "--out", "/dev/null"], "--out /dev/null: expected a new or empty folder, found a file"),
    ],
)
def test_what_it_refuses(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "recipe, table, said",
    [
        ("text-tiny", "prompt,target\na sign,KITE\n", "a sign: expected a column color with one of red, green, "),
        ("text-tiny", "prompt,target,color\na sign,Kite,red\n", "a sign: word 'Kite': expected 2 to 5 letters A-Z"),
        ("text-tiny", "prompt,target,color\na sign,KITE,mauve\n", "a sign: color 'mauve': expected one of red"),
        ("count-tiny", "prompt,target,class,color\nnine,9,circle,red\n", "nine: count 9: expected 1 to 6"),
        ("count-tiny", "prompt,target,class,color\ndogs,2,dog,red\n", "dogs: shape 'dog': expected one of circle"),
    ],
)
def test_prompts_that_the_renderer_does_not_draw_are_named(
    recipe: str, table: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text(table)
    own = ["--task.prompts", str(tmp_path / "p.csv"), "--task.num_prompts", "null", "--task.split", "all"]
    assert main([recipe, "--out", str(tmp_path / "out"), *own]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: task.prompts: {said}") and error.count("\n") == 1
    assert main([recipe, "--out", str(tmp_path / "out"), "--having", "5" if "count" in recipe else "X", *own]) == 2
    assert "expected prompts that have it, found none in task.split all" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_imported_its_groups_have_better_and_worse_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["text-tiny", "--out", "oracle-words", *SMALL]) == 0
    assert cli.main(["import", "text-tiny", "oracle-words", "--name", "oracle-words", *SMALL]) == 0
    groups = catalog.connect("lake").execute("SELECT group_key, dead, std FROM groups ORDER BY 1").fetchall()
    assert [key for key, dead, _ in groups if not dead] == [f"text-0000000{i}" for i in range(3)]
    found = [row for path in sidecars(tmp_path / "lake/dataset=oracle-words") for row in read_rows(path)]
    assert [row["reward"] == 1 for row in found] == [True, True, False, False] * 3
    assert {row["color"] == row["color_seen"] for row in found} == {True}

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
    assert main(["count-tiny", "--out", str(tmp_path / "six"), "--having", "6", *SMALL]) == 0
    assert {row["target"] for row in rows(tmp_path / "six", "prompts")} == {6}


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["text-sdxl"], "expected task.kind text or count with task.grammar signs"),
        (["text-tiny", "--right", "0"], "--right: expected a share above 0"),
        (["text-tiny", "--having", "q"], "--having: expected a letter A-Z or a number 1-6, found 'q'"),
        (["count-tiny", "--having", "6"], "task.num_prompts: expected at most"),
        (["text-tiny", "--task.num_promts", "3"], "did you mean"),
    ],
)
def test_what_it_refuses(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_imported_its_groups_have_better_and_worse_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["text-tiny", "--out", "oracle-words", *SMALL]) == 0
    assert cli.main(["import", "text-tiny", "oracle-words", "--name", "oracle-words", *SMALL]) == 0
    groups = catalog.connect("lake").execute("SELECT group_key, dead, std FROM groups ORDER BY 1").fetchall()
    assert [key for key, dead, _ in groups if not dead] == [f"text-0000000{i}" for i in range(3)]
    found = [row for path in sidecars(tmp_path / "lake/dataset=oracle-words") for row in read_rows(path)]
    assert [row["reward"] == 1 for row in found] == [True, True, False, False] * 3
    assert {row["color"] == row["color_seen"] for row in found} == {True}

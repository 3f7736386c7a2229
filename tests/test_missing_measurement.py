"""What is right in a task is read from measurements; where one is missing, that is said. One's own detector will do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gpo_data import cli
from gpo_train import cli as train

DETECTOR = """
import numpy as np

def count(images, targets):
    return [{"n_detected": int(image[0, 0].sum()) % 3 + 1} for image in images]

count.columns = {"n_detected": int}
"""


def test_a_text_task_without_ocr_says_what_is_missing(here: Path, capsys: Any) -> None:
    text = here.read_text().replace("evaluators: [ocr]", "evaluators: [color]")
    here.write_text(re.sub("reward: .*", "reward: color_share", text))
    own = ["--name", "colours"]
    assert cli.main(["shards", str(here), *own]) == 0
    assert train.main(["fit", str(here), *own, "--train.epochs", "1"]) == 0  # the reward is all that training needs
    assert cli.main(["show", str(here), *own]) == 0
    capsys.readouterr()
    words = "what is right in task text is read from ocr_text, which nothing measured"
    for verb, run in (("audit", cli.main), ("eval", train.main)):
        assert run([verb, str(here), *own]) == 2
        told = capsys.readouterr().err
        assert words in told and "`gpo-data measure RECIPE --evaluator ocr` measures it" in told
    assert not list(here.parent.glob("lake/dataset=*-eval-*"))  # told before anything is drawn
    assert cli.main(["measure", str(here), *own, "--evaluator", "ocr"]) == 0
    assert cli.main(["audit", str(here), *own]) == 0


def test_a_count_task_with_ones_own_detector(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    Path("own_detector.py").write_text(DETECTOR)
    text = here.read_text().replace("evaluators: [ocr]", 'evaluators: ["own_detector:count"]')
    text = text.replace("kind: text, num_prompts: 6", "kind: count, num_prompts: 6")
    here.write_text(re.sub("reward: .*", "reward: 1 / (1 + abs(n_detected - target_count)) + 0.1 * entropy", text))
    own = ["--name", "counted", "--trust"]
    assert cli.main(["shards", str(here), *own]) == 0
    assert cli.main(["audit", str(here), "--name", "counted"]) == 0
    assert train.main(["fit", str(here), *own, "--train.epochs", "1"]) == 0
    assert train.main(["eval", str(here), *own]) == 0
    assert "exact" in capsys.readouterr().out

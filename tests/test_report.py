"""The verb `report`: evaluations of several runs side by side, from their files alone."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gpo_data import recipe
from gpo_data.lake.document import write_document
from gpo_train import cli
from gpo_train.evaluation.compare import tables
from gpo_train.evaluation.interval import interval, open_interval, share_interval
from gpo_train.evaluation.report import markdown_row
from gpo_train.evaluation.result import Alone, Difference, Evaluation, Figures, Level, Line, Point, Prompts, Side
from gpo_train.evaluation.side_by_side import side_by_side
from gpo_train.run import Run, RunManifest
from gpo_train.share import card

SOURCE = {"split": "file", "prompts": 40, "targets": 20, "left_out": 0}


def figures(n: int, exact: float, bounds: list[float]) -> Figures:
    return Figures(n=n, exact=exact, exact95=bounds, lenient=0.5, reward=0.25, reward95=[0.2, 0.3], failed=1, scores={})


def alone(folder: Path, file: str) -> Alone:
    found = Alone(
        **SOURCE,
        file=file,
        model="tiny",
        reward="text_exact(target, ocr_text)",
        all=figures(80, 0.125, [0.05, 0.2]),
        by_tag={"tag": {"a [b] | c": figures(40, 0.1, [0.0, 0.2]), "short": figures(40, 0.15, [0.1, 0.2])}},
        dataset="d",
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_document(found, folder / f"{found.stem}.json")
    return found


def evaluation(folder: Path, file: str | None, **more: Any) -> Evaluation:
    side = Side(exact=0.125, exact95=[0.05, 0.2], lenient=0.2, reward=0.3, reward95=[0.2, 0.4], failed=0, diversity=1.0)
    level = Level(n=40, base=0.1, policy=0.3, base95=[0.0, 0.2], policy95=[0.2, 0.4], ci95=[0.1, 0.3])
    found = Evaluation(
        **SOURCE | {"split": "file" if file else "heldout"},
        file=file,
        run=folder.name,
        mode="offline",
        n=80,
        base=side,
        policy=dataclasses.replace(side, exact=0.375, reward=0.55),
        difference=Difference(exact=0.25, ci95=[0.15, 0.35], lenient=0.1, reward=0.25, reward95=[0.1, 0.4]),
        diversity_ratio=1.0,
        by_level={},
        by_tag={"tag": {"short": level}},
        by_target={},
        datasets={"base": "b", "policy": "p"},
        **more,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_document(found, folder / f"{found.stem}.json")
    return found


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_runs_and_benchmarks_side_by_side(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone(there / "tiny-base", "bench/ocr/test.txt")
    evaluation(there / "one", "elsewhere/ocr/test.txt", reward="text_edit(target, ocr_text)")
    evaluation(there / "one", None)
    assert cli.main(["report", "tiny-base", "one", "--out", "out"]) == 0
    text = Path("out/report.md").read_text()
    ocr, tags, heldout, _ = re.split(r"^## ", text, flags=re.M)[1:]
    assert ocr.startswith("test.txt\n") and tags.startswith("test.txt, exact by tag\n")
    assert heldout.startswith("held-out prompts\n") and "tiny-base" not in heldout
    assert "| tiny-base | 40 | 20 | 80 |  | 12.5% [5.0, 20.0] |  |  | 0.250 [0.200, 0.300] |  |" in ocr
    assert "| one | 40 | 20 | 80 | 12.5% [5.0, 20.0] | 37.5% [5.0, 20.0] | +25.0 [+15.0, +35.0] |" in ocr
    assert "| +0.250 [+0.100, +0.400] |" in ocr
    assert "- reward of one: text_edit(target, ocr_text)" in ocr and "tiny-base: 1 pictures failed" in ocr
    assert "| short | 15.0% [10.0, 20.0] of 40 | 10.0% to 30.0% of 40: +20.0 [+10.0, +30.0] |" in tags
    assert "| a [b] \\| c | 10.0% [0.0, 20.0] of 40 |  |" in tags
    page = Path("out/report.html").read_text()
    assert page.count("<table>") == 4 and "+25.0 [+15.0, +35.0]" in page and "a [b] | c" in page
    said = " ".join(capsys.readouterr().out.split())
    assert "held-out prompts" in said and "out/report.html" in said


def test_files_of_one_name_have_titles_of_their_own(there: Path) -> None:
    for file in ("bench/ocr/test.txt", "bench/long/test.txt", "words.csv"):
        alone(there / "tiny-base", file)
    assert cli.main(["report", "tiny-base", "--out", "out"]) == 0
    titles = re.findall(r"^## (.*)", Path("out/report.md").read_text(), flags=re.M)
    assert [one for one in titles if "exact by" not in one] == ["long/test.txt", "ocr/test.txt", "words.csv"]


def test_what_cannot_be_reported_is_told(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation(there / "one", None)
    (there / "tiny-base").mkdir()

    def told(*arguments: str) -> str:
        assert cli.main(["report", *arguments]) == 2
        return capsys.readouterr().err

    said = told("one", "tiny-base")
    assert "found none; `gpo-train eval tiny --base-only --eval.prompts FILE` makes one" in said
    assert "run two: no such folder in runs" in told("one", "two")
    assert "expected runs alone" in told("one", "--eval.prompts", "8")
    assert "--unknown: expected an option of 'gpo-train report'" in told("one", "--unknown")
    path = there / "one" / "eval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n": "many"}))
    assert "eval.json: damaged: n: expected" in told("one")
    evaluation(there / "one", None)
    content = json.loads(path.read_text())
    content["difference"]["ci95"].pop()
    path.write_text(json.dumps(content))
    assert "eval.json: damaged: it lacks difference.ci95.1" in told("one")


def test_a_file_of_an_older_version_has_no_intervals(there: Path) -> None:
    evaluation(there / "old", None)
    path = there / "old" / "eval.json"
    content = json.loads(path.read_text())
    for one in (content["base"], content["policy"], content["difference"]):
        one.pop("exact95", None), one.pop("reward95")
    content["by_tag"]["tag"]["short"].pop("ci95")
    path.write_text(json.dumps(content))
    assert cli.main(["report", str(there / "old"), "--out", "out"]) == 0
    assert "| 12.5% | 37.5% | +25.0 [+15.0, +35.0] | 0.300 | 0.550 | +0.250 |" in Path("out/report.md").read_text()


@pytest.mark.parametrize(
    ("file", "stem"),
    [
        (None, "eval"),
        ("", "eval-validation"),
        ("a.csv", "eval-a"),
        ("x/dataset/ocr/test.txt", "eval-ocr-test"),
        ("org/Name é", "eval-org-Name-é"),
    ],
)
def test_each_benchmark_has_files_of_its_own(file: str | None, stem: str) -> None:
    split = {"split": "file" if file else "heldout" if file is None else "validation"}
    assert Prompts(**SOURCE | split, file=file or None).stem == stem


def test_what_is_of_an_earlier_policy_is_not_reported(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation(there / "one", None, train_seconds=3.0)
    made = dataclasses.asdict(recipe.load("text-tiny"))
    begun = RunManifest(run="one", mode="online", recipe=made, model_digest="d", created="t", state="finished")
    run = dataclasses.replace(begun, train_seconds=3.0)
    write_document(run, there / "one" / "run.json")
    assert cli.main(["report", "one", "--out", "out"]) == 0 and "+25.0 points" in card(Run(there / "one"), "other")
    write_document(dataclasses.replace(run, train_seconds=5.0), there / "one" / "run.json")
    assert cli.main(["report", "one"]) == 2
    assert "eval.json: the run has been trained further since; `gpo-train eval text" in capsys.readouterr().err
    assert "Not evaluated since it was trained further" in card(Run(there / "one"), "other")


def test_brackets_are_not_markup(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation(there / "one", "own/[b] [a-z].csv")
    for console in (cli.console, Console(width=100)):
        side_by_side(["one"], there, Path("out"), console)
        assert "[b] [a-z].csv" in capsys.readouterr().out
    line = Line(**SOURCE, file="x", line="reward '[/ ]'", points=[])
    point = Point(iteration=0, images=8, exact=0.5, failed=0, difference=0.0, ci95=[0.0, 0.1], diversity_ratio=1.0)
    made = tables({"[a-z]": dataclasses.replace(line, points=[point])})
    Console().print(made[0])
    assert "[a-z]" in capsys.readouterr().out


def test_intervals_of_shares_and_of_rewards() -> None:
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(20), 4)
    shares = (rng.random(80) < 0.05).astype(float)
    low, high = share_interval(shares, of)
    assert (low, high) == (max(0.0, interval(shares, of)[0]), interval(shares, of)[1])
    rewards = np.where(rng.random(80) < 0.1, np.nan, 20 + rng.normal(size=80))
    found = open_interval(rewards, of)
    assert found is not None and 19 < found[0] < np.nanmean(rewards) < found[1] < 21
    assert found == pytest.approx([20 + one for one in open_interval(rewards - 20, of) or []])
    assert open_interval(rewards, np.zeros(80)) is None and open_interval(rewards * np.nan, of) is None


def test_a_cell_cannot_break_its_row() -> None:
    assert markdown_row(["a|b", "c\nd"]) == "| a\\|b | c d |\n"

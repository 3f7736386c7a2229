"""The verb `compare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpo_train import cli
from gpo_train.evaluation.compare import by_line, iterations_trained, tables
from gpo_train.evaluation.result import Line, Point
from gpo_train.online.iterations import history
from tests.conftest import killed_at
from tests.parts.online import here as here
from tests.parts.online import online


def test_iterations_are_compared_on_held_out_prompts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--online.iterations", "2", "--train.learning_rate", "1e-3"]
    online(here, *short, name="fresh")
    online(here, *short, "--online.rollout_policy", "base", name="frozen")
    small = ["--eval.prompts", "2", "--eval.group_size", "2"]
    assert cli.main(["compare", str(here), "--run", "fresh", "frozen", *small]) == 0
    found = json.loads(Path("runs/compare/compare.json").read_text())
    assert [point["iteration"] for point in found["fresh"]["points"]] == [0, 1, 2]
    assert [point["images"] for point in found["fresh"]["points"]] == [0, 16, 32]
    assert {found["fresh"]["line"], found["frozen"]["line"]} == {
        "online.rollout_policy policy",
        "online.rollout_policy base",
    }
    assert Path("runs/compare/compare.png").stat().st_size > 5_000 and "held-out prompts" in capsys.readouterr().out
    assert cli.main(["compare", str(here), "--run", "nothing"]) == 2


def test_seeds_of_a_line_are_summed_up() -> None:
    def line(name: str, *differences: float) -> Line:
        points = [
            Point(
                iteration=i,
                images=8,
                exact=0.5 + difference,
                failed=0,
                difference=difference,
                ci95=[0.0, 0.1],
                diversity_ratio=1.0,
            )
            for i, difference in enumerate(differences)
        ]
        return Line(line=name, points=points, split="heldout", prompts=2, targets=2, left_out=0)

    found = {"a": line("x", 0.0, 0.1), "b": line("x", 0.0, 0.3, 0.4), "c": line("y", 0.0)}
    runs, lines = tables(found)
    assert runs.row_count == 6
    assert [[str(cell) for cell in column.cells] for column in lines.columns] == [
        ["x", "x"],
        ["2", "2"],
        ["0", "1"],
        ["+0.0", "+20.0"],
        ["+0.0", "+10.0"],
        ["+0.0", "+30.0"],
    ]
    assert len(tables({"c": found["c"]})) == 1


def test_runs_of_other_lengths_meet_where_both_have_a_point() -> None:
    def line(*iterations: int) -> Line:
        at = dict(exact=0.5, failed=0, difference=0.0, ci95=[0.0, 0.1], diversity_ratio=1.0)
        points = [Point(iteration=i, images=8 * i, **at) for i in iterations]
        return Line(line="x", points=points, split="heldout", prompts=2, targets=2, left_out=0)

    met = by_line({"a": line(0, 4, 8, 9), "b": line(0, 4, 6)})["x"]
    assert [(at, [point.iteration for point in points]) for at, points in met] == [(0, [0, 0]), (4, [4, 4])]


def test_a_run_that_a_rule_stopped_ends_with_what_it_trained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The iteration that it drew last was not trained on: the end is the policy that drew it, and one point."""
    run = online(here, "--online.iterations", "3", "--online.stop_diversity", "2")
    assert run.manifest().stopped_by and iterations_trained(run) == len(history(run.folder)) - 1 == 0
    small = ["--eval.prompts", "2", "--eval.group_size", "2"]
    assert cli.main(["compare", str(here), "--run", "a", *small]) == 0
    found = json.loads(Path("runs/compare/compare.json").read_text())
    assert [point["iteration"] for point in found["a"]["points"]] == [0, 0]


def test_a_run_without_a_policy_is_nothing_to_compare(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with killed_at(1):
        online(here, "--online.iterations", "2")
    assert cli.main(["compare", str(here), "--run", "a", "--eval.prompts", "2"]) == 2
    assert "compare: a: no iteration's policy is there yet" in capsys.readouterr().err

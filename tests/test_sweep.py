"""Sweeps: files that are read strictly, and rows that are run once, in processes of their own, and compared."""

from __future__ import annotations

import json
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpo_data.errors import UsageError
from gpo_data.signals import SIGNALS
from gpo_train import cli
from gpo_train.evaluation.interval import interval, interval_of_sums
from gpo_train.evaluation.result import Comparison, Difference, Side, Sums, Target
from gpo_train.sweep import page, processes
from gpo_train.sweep.line import Gain, Line, front, gain
from gpo_train.sweep.plan import read_plan
from gpo_train.sweep.processes import Job, run_all
from gpo_train.sweep.row import Curve, curve
from gpo_train.sweep.sweep import crowded

EXPERIMENTS = sorted((Path(__file__).parents[1] / "recipes/experiments").glob("*.yaml"))

SWEEP = """
recipe: small.yaml
jobs: 2
seeds: [0, 1]
set: {train.epochs: 1, eval.prompts: 2}
rows:
  - {name: gpo}
  - {name: awm, set: {train.loss: awm}, grid: {train.clip_range: [0.01]}}
"""


@pytest.fixture
def sweep_file(here: Path) -> Path:
    path = here.with_name("losses.yaml")
    path.write_text(SWEEP)
    return path


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_row_of_an_experiment_is_a_valid_recipe(path: Path) -> None:
    plan = read_plan(path)
    assert len({row.name for row in plan.rows}) == len(plan.rows) > 0
    for row in plan.rows:
        assert len(row.name) <= 80 and row.recipe.eval.split == "validation"


def test_a_row_keeps_its_name_when_recipes_get_new_keys(tmp_path: Path) -> None:
    """Else a sweep that was run is run again: a new key of a recipe goes into plan.YOUNGER."""
    (tmp_path / "own.yaml").write_text("task: {kind: text}\nevaluators: [ocr]\nreward: text_exact(target, ocr_text)\n")
    (tmp_path / "one.yaml").write_text(f"recipe: {tmp_path / 'own.yaml'}\n")
    (tmp_path / "set.yaml").write_text(f"recipe: {tmp_path / 'own.yaml'}\nset: {{train.guidance_scale: 2.0}}\n")
    (row,), (other,) = (read_plan(tmp_path / name).rows for name in ("one.yaml", "set.yaml"))
    assert row.name == "one-as-the-recipe-ddee2102-s0"
    assert other.name.split("-")[-2] != row.name.split("-")[-2]


def test_an_online_rows_reward_is_checked_before_any_row_begins(sweep_file: Path) -> None:
    rows = "\nrows: [{name: right}, {name: wrong, set: {reward: 'text_exact(target, ocr_txt)'}}]\n"
    sweep_file.write_text("recipe: text-tiny\nmode: online" + rows)
    with pytest.raises(UsageError, match=r"rows: 'wrong': reward: .*ocr_txt.*Candidate bindings: \"ocr_text\""):
        read_plan(sweep_file)
    sweep_file.write_text("recipe: text-tiny\nmode: offline" + rows)
    assert len(read_plan(sweep_file).rows) == 2  # a dataset that is there may have such a column


def test_rows_are_whole_recipes(sweep_file: Path) -> None:
    rows = read_plan(sweep_file, ["--train.beta", "5"]).rows
    assert [(row.label, row.seed) for row in rows] == [
        ("gpo", 0),
        ("gpo", 1),
        ("awm clip_range 0.01", 0),
        ("awm clip_range 0.01", 1),
    ]
    assert [row.recipe.train.seed for row in rows] == [0, 1, 0, 1] and rows[2].recipe.train.loss == "awm"
    assert {row.recipe.train.beta for row in rows} == {5} and {row.recipe.name for row in rows} == {"small"}
    assert rows[0].name != read_plan(sweep_file).rows[0].name  # another beta is another run
    sweep_file.write_text("recipe: small.yaml\ngrid: {group_size: [4, 8]}\nmode: offline\n")
    names = [row.recipe.name for row in read_plan(sweep_file).rows]
    assert names[0] == "small" and str(names[1]).startswith("small-")  # other pictures are another dataset
    sweep_file.write_text(
        "recipe: small.yaml\nrows: [{name: a}, {name: b, set: {ocr.upscale: 2, reward: ocr_confidence}}]\n"
    )
    one, other = read_plan(sweep_file).rows
    assert one.recipe.name == "small" != other.recipe.name  # other measurements are another dataset too
    sweep_file.write_text("recipe: small.yaml\nset: {watchers: [color]}\ngrid: {reward: ['1', ocr_confidence]}\n")
    one, other = read_plan(sweep_file).rows
    assert one.recipe.name == other.recipe.name == "small" and one.drawing.reward == other.drawing.reward
    assert not one.drawing.watchers and one.recipe.watchers  # what is drawn is what the recipe alone would draw
    sweep_file.write_text("recipe: small.yaml\npoints: [2]\n")
    assert read_plan(sweep_file).rows[0].name not in {row.name for row in rows}
    sweep_file.write_text("recipe: small.yaml\nmode: online\nseeds: [3]\n")
    assert read_plan(sweep_file).rows[0].recipe.seed == 3


def test_a_sweep_of_a_checkout_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_plan("means-text").sweep.name == "means-text"
    with pytest.raises(UsageError, match="sweep means-txt: no such file; did you mean 'means-text'"):
        read_plan("means-txt")


def test_means_are_of_seeds_that_follow_each_other(sweep_file: Path) -> None:
    sweep_file.write_text(
        "recipe: small.yaml\nseeds: [4, 5, 6, 7]\ngrid: {train.beta: [1, 2]}\nmeans: {of: [2, 4], scales: [1, 2]}"
    )
    rows = read_plan(sweep_file).rows
    trained, means = rows[:8], rows[8:]
    assert not any(row.of for row in trained) and len({row.name for row in rows}) == len(rows) == 8 + 12
    names = [row.name for row in trained]
    assert [row.of for row in means if row.scale == 1] == [
        *(tuple(names[i : i + 2]) for i in range(0, 8, 2)),
        *(tuple(names[i : i + 4]) for i in (0, 4)),
    ]
    assert [row.label for row in means if len(row.of) == 4 and row.scale == 2] == [
        f"beta {beta}, mean of 4, x 2" for beta in (1, 2)
    ]
    assert [row.seed for row in means[:4]] == [4, 6, 4, 6]


def test_a_run_alone_is_scaled_and_its_last_iterations_are_averaged(sweep_file: Path) -> None:
    sweep_file.write_text(
        "recipe: small.yaml\nmode: online\nseeds: [0, 1]\nset: {online.iterations: 3}\n"
        "means: {of: [1, 2], scales: [0.8, 1], last: [null, 2]}"
    )
    rows = read_plan(sweep_file).rows
    assert len({row.name for row in rows}) == len(rows) == 2 + 2 * 3 + 4  # but for a run as it is
    assert [row.label.removeprefix("as the recipe, ") for row in rows[2::2]] == [
        "x 0.8",
        "last 2, x 0.8",
        "last 2",
        "mean of 2, x 0.8",
        "mean of 2, last 2, x 0.8",
    ]
    assert [(row.of, row.last, row.scale) for row in rows[4:6]] == [((row.name,), 2, 0.8) for row in rows[:2]]


def test_a_front_has_what_nothing_beats() -> None:
    assert front([(1, 1), (2, 0.5), (0.5, 2), (1, 0.9), (2, 0.5), (float("nan"), 9)]) == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]


def test_the_interval_of_sums_is_that_of_values() -> None:
    import numpy as np

    values, clusters = np.random.default_rng(0).choice([-1.0, 0, 1], 60), np.arange(60) % 7
    sums, sizes = np.bincount(clusters, values), np.bincount(clusters)
    assert interval(values, clusters) == pytest.approx(interval_of_sums(sums, sizes))


def test_gains_of_several_seeds_are_over_targets_and_say_what_a_reward_alone_believes() -> None:
    def comparison(exact: float, paid: float, watched: float) -> Comparison:
        one = Side(exact=exact, lenient=exact, reward=paid, failed=0, diversity=1.0)
        targets = {
            key: Target(
                n=2, sum=2 * exact, others={"reward": Sums(n=2, sum=2 * paid), "watched/x": Sums(n=1, sum=watched)}
            )
            for key in ("KITE", "UP")
        }
        change = Difference(exact=exact, ci95=[0.0, 1.0], lenient=0.0)
        rest: Any = {"by_level": {}, "diversity_ratio": 1.0, "datasets": {}}
        return Comparison(n=4, base=one, policy=one, difference=change, by_target=targets, **rest)

    seeds = [comparison(0.25, 1.0, 0.0), comparison(0.75, 3.0, 0.5)]
    both = 1 - 0.025**0.5  # of other targets than two alike ones
    assert gain(seeds).mean == 0.5 and gain(seeds).ci95 == pytest.approx((0.5 - both * 1.5, 0.5 + both * 0.5))
    assert gain(seeds, "reward").mean == 2.0 and gain(seeds, "watched/x").mean == 0.25
    assert gain(seeds[:1], "watched/x") == Gain(0.0, (0.0, 0.0))


def test_a_curve_goes_on_behind_a_line_that_was_not_finished(tmp_path: Path) -> None:
    (logs := tmp_path / "logs/csv").mkdir(parents=True)
    head = "error_diff/above_mean,error_diff/below_mean,step\n"
    for name, lines in (("metrics", "1,3,1\n"), ("metrics-1", "1,2"), ("metrics-2", "1,4,0\n1,2e-")):
        (logs / f"{name}.csv").write_text(head + lines)
    assert curve(tmp_path) == Curve([0.0, 1.0], [3.0, 2.0])


def test_a_job_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    found: dict[str, int] = {}
    jobs = [Job(str(code), operator.index, (code,), tmp_path / f"{code}.log") for code in (3, 0)]
    jobs.append(Job("killed", signal.raise_signal, (signal.SIGKILL,), tmp_path / "killed.log"))  # type: ignore[arg-type]
    run_all(jobs, 2, lambda job, code: found.update({job.name: code}))
    assert found == {"3": 3, "0": 0, "killed": -signal.SIGKILL}


def test_more_rows_at_once_than_cores_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpo_data.hardware.cores", lambda: 2)
    assert crowded(3, {"cpu"}) == "warning: jobs: 3 rows at once on 2 physical cores take longer than 2 at once would"
    assert crowded(2, {"cpu"}) is None and crowded(0, set()) is None


def test_some_rows_are_run_alone(sweep_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep_file.write_text(SWEEP + "means: {of: [2], scales: [1]}\n")
    plan = read_plan(sweep_file)

    def chosen(labels: list[str], seeds: list[int]) -> list[tuple[str, int]]:
        return [(row.label, row.seed) for row in plan.only(labels, seeds).asked]

    assert plan.only([], []) == plan
    assert chosen(["gpo"], []) == [("gpo", 0), ("gpo", 1), ("gpo, mean of 2", 0)]
    assert chosen(["awm*"], [1]) == [("awm clip_range 0.01", 1), ("awm clip_range 0.01, mean of 2", 0)]
    assert chosen(["gpo, mean of 2"], []) == chosen(["gpo"], []), "a mean is run with what it is of"
    assert len(chosen(["awm*", "gpo"], [0, 1])) == len(plan.rows) == 6
    assert cli.main(["sweep", str(sweep_file), "--list", "--rows", "gpo", "awm*", "--seeds", "0"]) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "gpo, seed 0",
        "awm clip_range 0.01, seed 0",
        "gpo, mean of 2, seed 0",
        "awm clip_range 0.01, mean of 2, seed 0",
    ]
    for asked, said in (
        (["--rows", "gpoo"], "--rows 'gpoo': no such row; did you mean 'gpo'?"),
        (["--seeds", "1", "2"], "--seeds 2: expected some of [0, 1], the seeds of the file"),
    ):
        assert cli.main(["sweep", str(sweep_file), *asked]) == 2 and said in capsys.readouterr().err
    listed = SWEEP.replace("[0, 1]", "[1, 2]").replace("clip_range: [0.01]", "timestep_range: [[0.2, 0.8]]")
    sweep_file.write_text(listed)
    plan = read_plan(sweep_file)
    assert chosen(["awm timestep_range [0.2, 0.8]"], [2]) == [("awm timestep_range [0.2, 0.8]", 2)]
    with pytest.raises(UsageError, match="--seeds 0: expected some of"):
        plan.only([], [0])
    assert not sweep_file.with_name("sweeps").exists()


def test_jobs_of_this_machine_are_not_a_clusters(sweep_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", str(sweep_file), "--jobs", "2", "--workers", "2"]) == 2
    assert "on a Ray --workers says how many" in capsys.readouterr().err
    assert not sweep_file.with_name("sweeps").exists()


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_and_runs_no_row_twice(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_file.write_text(SWEEP.replace("[0, 1]", "[0]") + "  - {name: none, set: {where: member < 0}}\n")
    out = tmp_path / "sweeps/losses"
    command = [sys.executable, "-m", "gpo_train.cli", "sweep", str(sweep_file)]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while not list(out.glob("rows/*.json")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 130 and "the same command goes on from here" in said
    before = {path.name: path.read_bytes() for path in out.glob("rows/*.json")}
    assert before and "rows are missing" in (out / "index.html").read_text()
    assert cli.main(["sweep", str(sweep_file), "--jobs", "1"]) == 1  # a row that fails is told, and the others are run
    said = capsys.readouterr().out
    assert f"3 rows, {len(before)} of them done, at most 1 at once" in said
    assert "failed with exit code 2: error: dataset small: no group has two members to compare" in said
    after = {path.name: path.read_bytes() for path in out.glob("rows/*.json")}
    assert len(after) == 2 and before.items() <= after.items()
    one = json.loads(next(iter(after.values())))
    assert (
        one["pictures"] == 24
        and one["steps"] == 3
        and len(one["curve"]["y"]) == 3
        and one["evaluation"]["split"] == "validation"
    )
    table = (out / "table.md").read_text()
    assert "| awm clip_range 0.01 | 1 |" in table and "1 of 3 rows are missing: none, seed 0" in table
    assert (out / "index.html").read_text().count("<img") == 2


def test_whatever_stops_a_drawing_stops_a_sweep() -> None:
    for number in SIGNALS:
        inherited = signal.signal(number, signal.SIG_DFL)  # `nohup` ignores SIGHUP, and then it stays ignored
        before = signal.getsignal(number)
        with processes.stop_signals() as came:
            os.kill(os.getpid(), number)
        assert came == [number] and signal.getsignal(number) is before
        signal.signal(number, inherited)


@pytest.mark.slow
def test_rows_share_what_is_drawn_whatever_they_are_paid_for_and_are_evaluated_at_points(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_file.write_text(
        "recipe: small.yaml\npoints: [1, 2, 99]\nset: {train.epochs: 1, eval.prompts: 2, watchers: [color]}\nrows:\n"
        "  - {name: edit}\n  - {name: squared, set: {reward: 'text_edit(target, ocr_text) ^ 2 - dark_fraction'}}\n"
    )
    assert cli.main(["sweep", str(sweep_file)]) == 0, capsys.readouterr().out
    drawn = {path.name for path in (tmp_path / "lake").glob("dataset=small*") if "-eval-" not in path.name}
    assert drawn == {"dataset=small"}  # both are trained on the recipe's own
    rows = [json.loads(path.read_text()) for path in (tmp_path / "sweeps/losses").glob("rows/*.json")]
    assert [sorted(row["points"]) for row in rows] == [["1", "2"]] * 2 and min(row["peak_memory"] for row in rows) > 1e8
    kept = [path.name for path in (tmp_path / "sweeps/losses/runs").glob("*-edit-*/points/*")]
    assert sorted(kept) == ["000001", "000002"]
    head = (tmp_path / "sweeps/losses/table.md").read_text().splitlines()[0]
    assert head.endswith("| s | GB | gain of reward | gain of color_distance | gain of color_share | step 1 | step 2 |")
    assert "points: 99: no row trained" in (tmp_path / "sweeps/losses/table.md").read_text()
    shown = (tmp_path / "sweeps/losses/index.html").read_text()
    assert "Accuracy by training step" in shown and "Gain of color_share and of the reward" in shown


@pytest.mark.slow
def test_the_mean_of_seeds_is_a_row(sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    means = "means: {of: [2], scales: [1.0, 1.5]}\n"
    sweep_file.write_text(
        "recipe: small.yaml\njobs: 2\nseeds: [0, 1]\npoints: [1]\nset: {train.epochs: 1, eval.prompts: 2}\n" + means
    )
    plan = read_plan(sweep_file)
    assert [row.label.rpartition("recipe")[2] for row in plan.rows[2:]] == [", mean of 2", ", mean of 2, x 1.5"]
    assert plan.rows[3].of == tuple(row.name for row in plan.rows[:2]) and plan.rows[3].scale == 1.5
    assert cli.main(["sweep", str(sweep_file), "--seeds", "1"]) == 0, capsys.readouterr().out
    assert "4 rows, 0 of them done, 1 left out, at most 2 at once" in (said := capsys.readouterr().out)
    assert "| as the recipe | 1 of 2 |" in said
    assert [path.name for path in (tmp_path / "sweeps/losses/runs").iterdir()] == [plan.rows[1].name]
    assert cli.main(["sweep", str(sweep_file)]) == 0 and "4 rows, 1 of them done, at most" in capsys.readouterr().out
    rows = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "sweeps/losses").glob("rows/*.json")}
    of, mean = (rows[plan.rows[i].name] for i in (0, 3))
    assert mean["steps"] == 2 * of["steps"] and mean["pictures"] == of["pictures"] and mean["points"] == {}
    assert "| as the recipe, mean of 2, x 1.5 | 1 |" in (tmp_path / "sweeps/losses/table.md").read_text()
    assert cli.main(["sweep", str(sweep_file)]) == 0 and "4 rows, 4 of them done" in capsys.readouterr().out


def test_rows_whose_dataset_is_not_drawn_fail(sweep_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep_file.write_text(SWEEP.replace("set: {", "set: {group_size: 3, ", 1))
    assert cli.main(["sweep", str(sweep_file)]) == 1
    said = capsys.readouterr().out
    assert "small: failed with exit code 2: " in said and "group_size: 4 there, 3 in the recipe" in said
    assert "dataset small was not drawn: the rows that train on it (4) fail" in said
    out = sweep_file.parent / "sweeps/losses"
    assert not [*out.glob("r*/*")] and "4 of 4 rows are missing, 4 of them failed" in " ".join(
        (out / "index.html").read_text().split()
    )


def test_points_that_no_row_reaches_are_said(sweep_file: Path) -> None:
    sweep_file.write_text("recipe: small.yaml\npoints: [99, 2, 64]\n")
    plan, none = read_plan(sweep_file), Gain(0.0, (0.0, 0.0))
    line = Line("a", 1, 1, 0.5, none, [0.0], 1.0, None, 0, 8.0, 1.0, None, [Curve([0.0], [0.0])], {}, {2: none})
    said = "points: 64, 99: no row trained so many steps with every seed"
    assert page.unreached(plan, [line]) == said and said in page.html(plan, [line], [], 0)
    assert page.unreached(plan, []) == ""  # none is done

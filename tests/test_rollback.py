"""`online.rollback`: which iteration's weights a run ends with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from gpo_data import recipe
from gpo_data.errors import UsageError
from gpo_data.lake import catalog
from gpo_train import cli
from gpo_train.evaluation import rollback
from gpo_train.evaluation.result import Point
from gpo_train.online.iterations import Iteration
from gpo_train.run import Run
from tests.parts.online import here as here
from tests.parts.online import online
from tests.parts.training import equal, weights_of

ROLLBACK = ["--online.rollback", "validation", "--online.rollback_prompts", "2", "--eval.group_size", "2"]


def file_of(folder: Path) -> dict[str, Any]:
    return load_file(next(folder.rglob("*.safetensors")))


def point(iteration: int, exact: float) -> Point:
    return Point(
        iteration=iteration, images=0, exact=exact, failed=0, difference=0.0, ci95=[0.0, 0.0], diversity_ratio=1.0
    )


def test_the_best_is_the_last_of_the_best() -> None:
    found = [point(1, 0.25), point(2, 0.5), point(3, 0.5), point(4, 0.375)]
    assert rollback.best(found).iteration == 3
    assert rollback.best(found[:1]).iteration == 1


# Right is a picture with edges (0.35 of a random one). A rate this large wears them away at the second iteration, on
# every processor: to 0.07 in float32 with AVX2 alone, 0.10 with AMX; after the first more than 0.28 are left.
WORN = [
    *("--train.learning_rate", "3.5e-2", "--task.kind", "align", "--online.iterations", "2"),
    *("--reward", "CASE WHEN edge_density > 0.2 THEN 1 + entropy ELSE entropy / 10 END"),
]


def test_a_run_ends_with_its_best_iteration(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = online(here, *ROLLBACK, *WORN, name="whole")
    found = run.manifest().rollback
    assert found is not None and not found.pruned
    exact = {one.iteration: one.exact for one in found.candidates}
    assert found.iteration == 1 and exact[1] > exact[2] and found.exact == exact[1]
    assert equal(file_of(run.policy), file_of(Iteration(run.folder, 1).policy))
    assert not equal(file_of(run.last), file_of(run.policy))
    # The figures are the lake's, of prompts none of which was trained on.
    con = catalog.connect("lake")
    shares = con.execute(
        "SELECT avg(exact::DOUBLE) FROM members WHERE dataset LIKE 'whole-eval-%' GROUP BY dataset"
    ).fetchall()
    assert sorted(share for (share,) in shares) == sorted(exact.values())
    assert not con.execute(
        "SELECT prompt FROM members WHERE dataset LIKE 'whole-it%' INTERSECT SELECT prompt FROM members "
        "WHERE dataset LIKE 'whole-eval%'"
    ).fetchall()
    # An iteration's datasets are what it was trained on: no evaluation has a name like theirs.
    assert {path.name for path in Path("lake").glob("dataset=whole-it*")} == {
        "dataset=whole-it0000",
        "dataset=whole-it0001",
    }

    assert cli.main(["watch", str(here), "--run", "whole"]) == 0
    assert "rollback: the policy after iteration 1, of 2" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_while_it_chooses_equals_never_killed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = online(here, *ROLLBACK, *WORN, name="whole")

    # When the weights of the end are written, and again when the best ones are in place.
    def killed(*rest: Any, **named: Any) -> None:
        raise ValueError("killed")

    for there, step in ((False, "points"), (True, "line")):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="killed"):
            patch.setattr(rollback, step, killed)
            online(here, *ROLLBACK, *WORN, name="broken")
        assert Run(Path("runs/broken")).policy.is_dir() is there
    broken = online(here, *ROLLBACK, *WORN, name="broken")
    assert broken.manifest().rollback == run.manifest().rollback is not None
    assert equal(weights_of(broken), weights_of(run)) and equal(file_of(broken.last), file_of(run.last))


@pytest.mark.slow
def test_more_iterations_go_on_from_the_last_and_not_from_the_best(here: Path) -> None:
    more = ["--online.iterations", "3"]
    online(here, *ROLLBACK, *WORN, name="longer")
    longer = online(here, *ROLLBACK, *WORN, *more, name="longer")
    assert equal(file_of(longer.last), weights_of(online(here, *WORN, *more, name="plain")))
    found = longer.manifest().rollback
    assert found is not None and [one.iteration for one in found.candidates] == [1, 2, 3]


def test_pruned_iterations_are_no_candidates(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*ROLLBACK, "--online.keep_last", "1", "--run", "a", "--mode", "online"]
    assert cli.main(["fit", str(here), *arguments]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "choose among the weights of the last 1 iterations" in said
    assert "the weights after 1 of 3 iterations are gone (the last of them: 1)" in said
    found = Run(Path("runs/a")).manifest().rollback
    assert found is not None and [one.iteration for one in found.candidates] == [2, 3] and found.pruned == [1]
    # No word is read in random pictures: all are equal, and the last stands.
    assert found.iteration == 3 and "the last one" in said and "no iteration is better than the base" in said
    assert cli.main(["compare", str(here), "--run", "a", "--eval.prompts", "2", "--eval.group_size", "2"]) == 0
    points = json.loads(Path("runs/compare/compare.json").read_text())["a"]["points"]
    assert [one["iteration"] for one in points] == [0, 2, 3]
    capsys.readouterr()
    assert cli.main(["average", str(here), "--run", "a", "--last", "3"]) == 2
    assert "pruned by online.keep_last" in " ".join(capsys.readouterr().err.split())


def test_what_was_trained_on_cannot_choose(here: Path) -> None:
    for split in ("all", "validation"):
        with pytest.raises(UsageError, match="expected task.split: train"):
            online(here, *ROLLBACK, "--task.split", split)
    assert not Path("runs/a").exists()
    made = recipe.load(here, ROLLBACK)
    assert rollback.validated(made).eval == dataclasses.replace(made.eval, split="validation", prompts=2)

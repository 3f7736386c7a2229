"""`online.rollback: validation`: which iteration's weights an online run ends with.

    runs/<run>/iterations/it0003/policy/    a candidate: the weights after iterations 0 to 2
    runs/<run>/last/                        the weights at the end, a candidate too
    runs/<run>/policy/                      a copy of the best one

Every candidate draws the same prompts of the part `validation` with the same seeds as the base, as `compare` does. The
best one has the largest share exactly as asked; of equal ones the last, which was trained for longest. The base is no
candidate; its share stands beside the others. Invariants: no prompt that was trained on chooses; the weights to choose
from lie on disk and the datasets are named after them, so that a run killed here ends as one never killed.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence

from rich.console import Console

from gpo_data.errors import UsageError
from gpo_data.generation.remote import kept_workers
from gpo_data.lake.durable import whole_folder
from gpo_data.recipe import Recipe
from gpo_train.evaluation.compare import iterations_trained, points
from gpo_train.evaluation.evaluate import expect_measured
from gpo_train.evaluation.prompts import choose
from gpo_train.evaluation.report import points_text
from gpo_train.evaluation.result import Candidate, Point, Rollback
from gpo_train.evaluation.trained import trained_keys
from gpo_train.online.iterations import Iteration
from gpo_train.run import Run


def validated(recipe: Recipe) -> Recipe:
    """The recipe that evaluates candidates."""
    settings = dataclasses.replace(recipe.eval, split="validation", prompts=recipe.online.rollback_prompts)
    return dataclasses.replace(recipe, eval=settings)


def check(recipe: Recipe, run: Run, console: Console) -> None:
    """Before the first step: whether there will be something to choose by, and to choose from. Raises UsageError."""
    if recipe.task.split != "train":
        raise UsageError(
            f"online.rollback: validation: expected task.split: train, found {recipe.task.split}: what is trained on "
            f"cannot choose; leave task.split out, or online.rollback"
        )
    expect_measured(recipe)
    chosen = choose(validated(recipe), set(), run.folder)
    kept = recipe.online.keep_last
    if kept is not None and kept < recipe.online.iterations:
        console.print(
            f"online.keep_last: {kept}: online.rollback will choose among the weights of the last {kept} iterations, "
            f"and of the end",
            soft_wrap=True,
        )
    console.print(f"online.rollback: by {len(chosen.keys)} validation prompts, at the end", soft_wrap=True)


def to_best(recipe: Recipe, run: Run, console: Console) -> Rollback:
    """Evaluate the candidates, copy the best one's weights to `policy/`. Raises UsageError, RunError, Interrupted."""
    judged = validated(recipe)
    chosen = choose(judged, trained_keys(recipe, run), run.folder)
    trained = iterations_trained(run)
    pruned = [i for i in range(1, trained) if not Iteration(run.folder, i).has_weights]
    if pruned:
        console.print(
            f"online.keep_last: the weights after {len(pruned)} of {trained} iterations are gone (the last of them: "
            f"{pruned[-1]}); online.rollback chooses among the others",
            soft_wrap=True,
        )
    with kept_workers(judged, console) as workers:
        base, *found = points(judged, run, chosen, 1, console, workers)
    at = best(found)
    folder = run.last if at.iteration == trained else Iteration(run.folder, at.iteration).policy
    with whole_folder(run.policy) as out:
        shutil.copytree(folder, out)
    made = Rollback(
        iteration=at.iteration,
        iterations=trained,
        exact=at.exact,
        difference=at.difference,
        ci95=at.ci95,
        base=base.exact,
        candidates=[Candidate(iteration=one.iteration, exact=one.exact) for one in found],
        pruned=pruned,
        prompts=len(chosen.keys),
        targets=len(set(chosen.keys)),
    )
    console.print(line(made), soft_wrap=True)
    return made


def best(found: Sequence[Point]) -> Point:
    """The largest share exactly as asked; of equal ones the last."""
    return max(found, key=lambda one: (one.exact, one.iteration))


def line(found: Rollback) -> str:
    """For people and for grep."""
    worse = "" if found.exact > found.base else "; no iteration is better than the base"
    which = "the last one" if found.iteration == found.iterations else f"of {found.iterations}"
    return (
        f"rollback: the policy after iteration {found.iteration}, {which}: exact {100 * found.exact:.1f}% of "
        f"{found.prompts} validation prompts, base {100 * found.base:.1f}%, difference "
        f"{points_text(found.difference, found.ci95)} points{worse}"
    )

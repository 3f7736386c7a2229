"""Several policies of one run against its base, whose pictures are drawn once: by step, or by iteration."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from gpo_data.generation.generate import draw
from gpo_data.generation.remote import Begin, kept_workers
from gpo_data.lake.reader import diversity
from gpo_data.recipe import Recipe
from gpo_train.evaluation import evaluate
from gpo_train.evaluation.prompts import EvalPrompts, choose
from gpo_train.evaluation.result import Comparison
from gpo_train.evaluation.trained import trained_keys
from gpo_train.run import Run, settle


def at_points(recipe: Recipe, run: Run, weights: Mapping[int, Path], console: Console) -> dict[int, Comparison]:
    """Earlier policies of a run against the base, on the prompts of its evaluation; the base is drawn once."""
    recipe = settle(recipe, run.folder, [])
    run.expect_base(recipe)
    chosen = choose(recipe, trained_keys(recipe, run), run.folder)
    with kept_workers(recipe, console) as workers:
        return dict(against_base(recipe, run.name, weights, chosen, console, workers))


def against_base(
    recipe: Recipe, name: str, weights: Mapping[int, Path], chosen: EvalPrompts, console: Console, workers: Begin
) -> Iterator[tuple[int, Comparison]]:
    """Of each folder of weights, in order, what it draws beside the base.

    `name`: of the run; a glob over its iterations, to train on them, shall not find evaluations.
    """
    measuring = evaluate.expect_measured(recipe)
    spread = functools.cache(diversity)  # the base's is asked for every time
    drawn = False
    for number, folder in weights.items():
        base, policy = evaluate.eval_recipes(recipe, chosen.task, name, folder)
        for side in (policy,) if drawn else (base, policy):
            draw(side, console, workers=workers, measuring=measuring)
        drawn = True
        sides = evaluate.members(recipe, base, policy)
        yield number, evaluate.compare(recipe, base, policy, sides, chosen, spread)

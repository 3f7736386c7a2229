"""Whether a recipe's reward goes with what its evaluators see: asked before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from gpo_data import evaluators
from gpo_data.evaluators.image_stats import ImageStats
from gpo_data.lake import rewards
from gpo_data.lake.watched import declared, refuse_watched
from gpo_data.recipe import EVALUATORS, Recipe


def expect_reward(
    recipe: Recipe, targets: dict[str, pa.DataType], chosen: list[evaluators.Evaluator]
) -> list[evaluators.Evaluator]:
    """The evaluators that only watch. Raises UsageError where the reward reads what they see, or what is not there,
    or a judge's questions are not.

    `targets`: the dataset's target columns.
    """
    watching = evaluators.watching(recipe, chosen)
    _expect(recipe, targets, evaluators.columns_of(watching))
    rewards.check(recipe.reward, targets | evaluators.columns_of(evaluators.paid(recipe, chosen)))
    return watching


def expect_declared_reward(recipe: Recipe, targets: dict[str, pa.DataType]) -> None:
    """The same before an evaluator is built. One of the user's own, or behind HTTP, says what it sees once it is built:
    with such a one the reward may read anything yet. Raises UsageError.

    `targets`: the target columns.
    """
    _expect(recipe, targets, [column for name in recipe.watchers for column in declared(name)])
    if all(name in EVALUATORS for name in recipe.evaluators):
        seen = {column: kind for name in recipe.evaluators for column, kind in declared(name).items()}
        rewards.check(recipe.reward, targets | ImageStats.columns | seen)


def _expect(recipe: Recipe, targets: dict[str, pa.DataType], watched: Iterable[str]) -> None:
    if "vlm" in [*recipe.evaluators, *recipe.watchers]:
        evaluators.expect_questions(recipe.vlm, targets)
    refuse_watched(recipe.reward, watched)

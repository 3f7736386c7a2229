"""What of a recipe runs somebody's code. A recipe is data that people share: such a part waits for the user's word.

    evaluators: [module:function]            imports the module
    yolo.weights: a file                     pickled objects, which run what they like when they are opened
    sampler.attention_backend: ..._hub       fetches compiled code

The word is `--trust` on the command line and `load(..., trust=True)` in Python. A Recipe that is made in Python is its
caller's own. Without it work what ships with the package (`tiny`) and, by their bare names, the weights that the user
put into ultralytics' own folder.
"""

from __future__ import annotations

from pathlib import Path

from gpo_data.errors import UsageError
from gpo_data.recipe.recipe import OWN_EVALUATOR, Recipe


def expect_no_code(recipe: Recipe) -> None:
    """Raise UsageError, which says what the recipe would run."""
    if found := code_of(recipe):
        raise UsageError(
            f"{'; '.join(found)}: nothing was run; if you trust who wrote it, `--trust` allows it (in Python: "
            f"load(..., trust=True))"
        )


def code_of(recipe: Recipe) -> list[str]:
    """What of the recipe runs code that is not this package's."""
    own = [name for name in recipe.evaluators if OWN_EVALUATOR.fullmatch(name)]
    found = [f"evaluators: {name} imports and runs the Python module {name.partition(':')[0]}" for name in own]
    weights = recipe.yolo.weights
    if {"yolo", "boxes"} & set(recipe.evaluators) and weights != "tiny" and _is_path(weights):
        found.append(f"yolo.weights: {weights} is opened as pickled objects, which may run any code")
    backend = recipe.sampler.attention_backend
    if backend is not None and backend.endswith("_hub"):
        found.append(f"sampler.attention_backend: {backend} fetches and runs compiled code")
    return found


def _is_path(weights: str) -> bool:
    """Whether it is not the bare name of a file in ultralytics' own folder."""
    return "/" in weights or "\\" in weights or Path(weights).exists()

"""Evaluators: image -> measurements, what was seen and not yet what it is worth (that is the reward, in SQL).

An evaluator has
    name, version    for the folder measures/<name>@<version>/; both match [A-Za-z0-9._-]+
    columns          {measurement column: Arrow type}
    measure(images, targets) -> one dict an image with exactly these columns, plain Python values;
                     images are uint8 [H, W, 3] RGB, targets are the prompts' target columns and `prompt`, the text
and its class, which is named in EVALUATORS of gpo_data/recipe/recipe.py, has
    of(name, recipe, threads) -> the evaluator, with its settings out of the recipe; raises UsageError
    classes()        what it knows by name, if it detects things: prompts that ask for others are refused at the plan
    needs            (extra of this package, packages that have to be there, ...), if any

What always holds: the order is kept, and the result for a picture depends neither on the pictures beside it nor on
the number of workers. What the version names covers all that changes what is seen. The heavy packages are imported
when the first picture is measured; a missing model file is an error when the evaluator is built.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from gpo_data import hardware
from gpo_data.errors import RunError, UsageError, few, words
from gpo_data.lake.sidecar import RESERVED
from gpo_data.prompt import Prompt
from gpo_data.recipe import BEHIND_HTTP, EVALUATORS, SECTIONS, Recipe, Sampler
from gpo_data.tasks import TASKS
from gpo_data.tasks.classes import canonical


class Evaluator(Protocol):
    name: str
    version: str
    columns: dict[str, pa.DataType]

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]: ...


def asked(prompt: Prompt) -> dict[str, Any]:
    """An entry of `targets`: the target columns and `prompt`, the text."""
    return prompt.target | {"prompt": prompt.text}


def check_classes(
    evaluators: list[Evaluator], prompts: Sequence[Prompt], names_of: Callable[[Prompt], set[str]]
) -> None:
    """Raise UsageError for prompts with things that a detector does not know; the first ten, and how many.

    Args:
        names_of: the classes that a prompt asks for.
    """
    asked = [(prompt, name) for prompt in prompts for name in sorted(names_of(prompt))]
    for evaluator in evaluators if asked else []:
        if not hasattr(evaluator, "classes"):
            continue
        there = evaluator.classes()
        known = {canonical(name) for name in there}
        if unknown := [(prompt, name) for prompt, name in asked if canonical(name) not in known]:
            names = list(dict.fromkeys(name for _, name in unknown))
            lines = "".join(f"\n  {name}: {prompt.text:.120}" for prompt, name in unknown[:10])
            raise UsageError(
                f"task: {evaluator.name} does not know what {len(unknown):,} of the {len(prompts):,} prompts ask for: "
                f"{few(names)}; its classes: {', '.join(there)}; take those prompts out, or another detector:{lines}"
            )


def try_out(evaluators: list[Evaluator], prompt: Prompt, sampler: Sampler) -> None:
    """Have each measure a blank picture, so that what would fail for every member fails before any is drawn.

    Raises UsageError and RunError.
    """
    blank = np.full((sampler.height, sampler.width, 3), 127, np.uint8)
    for evaluator in evaluators:
        try:
            evaluator.measure([blank], [asked(prompt)])
        except (UsageError, RunError):
            raise
        except Exception as error:  # whatever a package raises
            reason = words(error)
            raise RunError(
                f"evaluator {evaluator.name} fails on a blank picture: {reason}; nothing was drawn"
            ) from error


def build(recipe: Recipe, alone: bool = False, opened: Sequence[Evaluator] = ()) -> list[Evaluator]:
    """`image_stats`, the recipe's evaluators in its order, then its watchers. Raises UsageError for what is missing.

    Args:
        alone: nothing is drawn beside them. A denoiser on the CPU has its cores; an evaluator then gets one thread of
            its own in what it leaves, which measured a tenth more pictures a second than as many threads again.
        opened: evaluators of the same settings; those that would still see the same stay, with their models loaded.
    """
    from gpo_data.evaluators.image_stats import ImageStats

    shared = not alone and hardware.device_of(recipe.sampler.device) == "cpu"
    threads = 1 if shared else None
    names = [*recipe.evaluators, *recipe.watchers]
    stay = {(one.name, one.version): one for one in opened}
    made: list[Evaluator] = [ImageStats(), *(_named(name, recipe, threads) for name in names)]
    evaluators = [stay.get((one.name, one.version), one) for one in made]
    refuse_same_columns(f"task.kind: {recipe.task.kind}", TASKS[recipe.task.kind].columns, evaluators)
    return evaluators


def on_driver(recipe: Recipe) -> Recipe:
    """The recipe to build evaluators from: where a cluster measures, they tell columns and versions here, on no GPU."""
    if not recipe.ray.elsewhere:
        return recipe
    placed = [name for name in SECTIONS if hasattr(getattr(recipe, name), "device")]
    here: Any = {name: dataclasses.replace(getattr(recipe, name), device="cpu") for name in placed}
    return dataclasses.replace(recipe, **here)


def close(evaluators: Sequence[Any]) -> None:
    """End the processes of those that have some."""
    for evaluator in evaluators:
        if hasattr(evaluator, "close"):
            evaluator.close()


def chosen(recipe: Recipe, names: Sequence[str]) -> list[Evaluator]:
    """The evaluators of these names, which need not be in the recipe's list; with `image_stats` that one too."""
    for name in names:
        if name != "image_stats" and not recipe.knows(name):
            raise UsageError(f"evaluator: expected image_stats, {recipe.evaluators_known()}, found {name!r}")
    others = [name for name in dict.fromkeys(names) if name != "image_stats"]
    known = others or recipe.evaluators  # a recipe has one at least
    stats, *built = build(dataclasses.replace(recipe, evaluators=known, watchers=[]), alone=True)
    return ([stats] if "image_stats" in names else []) + (built if others else [])


def paid(recipe: Recipe, evaluators: list[Evaluator]) -> list[Evaluator]:
    """Of what `build` makes those whose columns a reward may read."""
    return evaluators[: len(evaluators) - len(recipe.watchers)]


def watching(recipe: Recipe, evaluators: list[Evaluator]) -> list[Evaluator]:
    """The others: the recipe's watchers."""
    return evaluators[len(evaluators) - len(recipe.watchers) :]


def _named(name: str, recipe: Recipe, threads: int | None) -> Evaluator:
    own = ("gpo_data.evaluators.function", "FunctionEvaluator")
    module, kind = BEHIND_HTTP if name in recipe.http.urls else EVALUATORS.get(name, own)
    found = getattr(importlib.import_module(module), kind)
    extra, *packages = getattr(found, "needs", [""])
    if missing := [package for package in packages if not installed(package)]:
        raise UsageError(
            f"evaluators: {name} needs {' and '.join(missing)}, not installed here: pip install 'gpo[{extra}]'"
        )
    made: Evaluator = found.of(name, recipe, threads)
    return made


def installed(package: str) -> bool:
    """Without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):  # ValueError: imported, without a spec
        return False


def refuse_same_columns(targets: str, columns: Mapping[str, pa.DataType], evaluators: list[Evaluator]) -> None:
    """A row has one value a name; SQL does not tell upper from lower case. Raises UsageError.

    `targets`: whose the target `columns` are, for people.
    """
    taken = {name.lower(): "every dataset" for name in sorted(RESERVED)}
    stats, *others = [(f"evaluators: {evaluator.name}", evaluator.columns) for evaluator in evaluators]
    for owner, named in [stats, (targets, columns), *others]:
        for name in named:
            if other := taken.get(name.lower()):
                raise UsageError(f"{owner}: the column {name!r} is one of {other} already; rename it")
            taken[name.lower()] = owner.partition(": ")[2] or owner  # an empty one would refuse nothing


def versions_of(evaluators: list[Any]) -> dict[str, str]:
    """{name: version}"""
    return {evaluator.name: evaluator.version for evaluator in evaluators}


def columns_of(evaluators: list[Any]) -> dict[str, pa.DataType]:
    """The measurement columns of all evaluators, in order."""
    return {name: kind for evaluator in evaluators for name, kind in evaluator.columns.items()}

"""What runs in an actor (ray.py): a worker, that draws, measures or draws again; or an evaluator for all workers.

A worker opens model and evaluators once and keeps them while it is told of other prompts or another policy.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Sequence
from itertools import chain, cycle
from typing import TYPE_CHECKING, Any

import numpy as np

import gpo_data
from gpo_data import evaluators, hardware, models
from gpo_data.errors import UsageError
from gpo_data.generation.plan import PlannedShard
from gpo_data.generation.worker import Drawer
from gpo_data.group import from_sample, to_sample
from gpo_data.lake.stage import END, pack_sample
from gpo_data.parts import open_archive
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe

if TYPE_CHECKING:
    from gpo_data.generation.travel import Files

Work = Callable[[Any], Any]  # a job to its result; of two jobs at a time in threads of their own


def expect_version(version: str) -> None:
    """Raises UsageError where it is not this machine's."""
    if version != gpo_data.__version__:
        where = f"gpo is {gpo_data.__version__} on {socket.gethostname()} and {version} where the command runs"
        raise UsageError(f"ray: {where}; install one version on all machines")


class Worker:
    """An actor's side. `open` is called when nothing else is under way."""

    def open(self, version: str, threads: int, opening: tuple[Callable[..., Work], tuple[Any, ...]]) -> None:
        expect_version(version)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        hardware.take_threads()
        work, arguments = opening
        self._work = work(*arguments)

    def do(self, job: Any) -> Any:
        return self._work(job)


class Remote:
    """An evaluator that measures in actors of its own, as fast as they are free."""

    def __init__(self, evaluator: Any, actors: list[Any]) -> None:
        self.name, self.version, self.columns = evaluator.name, evaluator.version, evaluator.columns
        self.actors = actors
        self._turns = cycle(random.sample(actors, len(actors)))  # workers do not all begin with the same one

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        import ray

        calls, size = [], -(-len(images) // len(self.actors))
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            calls.append(next(self._turns).measure.remote(images[part], targets[part]))
        try:
            return [row for rows in ray.get(calls) for row in rows]
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None


class EvaluatorActor:
    """The actor's side of Remote."""

    def __init__(self, recipe: Recipe, name: str, files: dict[str, Files]) -> None:
        from gpo_data.generation.travel import arrived

        with arrived(recipe, files) as recipe:
            (self._evaluator,) = evaluators.chosen(recipe, [name])

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        writable = [np.array(image) for image in images]
        found: list[dict[str, Any]] = self._evaluator.measure(writable, targets)
        return found


def beside(chosen: Sequence[Any], actors: dict[str, list[Any]]) -> list[Any]:
    """Evaluators; those that have actors of their own (by their `name`) measure in them."""
    return [Remote(one, actors[one.name]) if one.name in actors else one for one in chosen]


class Opened:
    """In a worker: what stays open from one dataset to the next."""

    model: tuple[Any, models.Model] | None = None
    evaluators: Sequence[Any] = ()


def precision() -> Work:
    """In a worker: (`sampler.dtype`, `sampler.device`) -> the precision that it is here."""
    return lambda job: hardware.dtype_for(job[0], hardware.device_of(job[1]))


def open_parts(
    recipe: Recipe,
    files: dict[str, Files],
    actors: dict[str, list[Any]],
    blank: Prompt | None = None,
) -> tuple[Recipe, Any, list[Any]]:
    """In a worker: (recipe, model, evaluators), those that it has already where the settings are the same.

    Args:
        blank: the prompt to try the evaluators with on a blank picture.
    """
    from gpo_data.generation.travel import arrived

    with arrived(recipe, files) as recipe:
        Opened.evaluators = evaluators.build(recipe, opened=Opened.evaluators)
        measuring = beside(Opened.evaluators, actors)
        if blank:
            evaluators.try_out(measuring, blank, recipe.sampler)
        wanted = (recipe.model, recipe.revision, recipe.sampler)
        if Opened.model is None or Opened.model[0] != wanted or not recipe.policy:  # without: a policy leaves no trace
            Opened.model = wanted, models.load(models.resolve(recipe.model, recipe.revision), recipe.sampler)
        if recipe.policy:
            models.load_policy_weights(Opened.model[1], models.policy_path(recipe.policy), recipe.seed)
        return recipe, Opened.model[1], measuring


def drawing(recipe: Recipe, files: dict[str, Files], actors: dict[str, list[Any]], blank: Prompt | None) -> Work:
    """In a worker: (shard, numbers of groups) -> each group's blocks."""
    recipe, model, measuring = open_parts(recipe, files, actors, blank=blank)
    drawer = Drawer(recipe, model, measuring, lambda group: pack_sample(group.key, to_sample(group)))
    turn = threading.Lock()

    def result(job: tuple[PlannedShard, list[int]]) -> list[bytes]:
        with turn:  # of the denoiser; the job before is measured meanwhile
            groups = list(drawer.groups(*job))
        return [group.result() for group in groups]

    return result


def measuring(
    recipe: Recipe, files: dict[str, Files], actors: dict[str, list[Any]], names: Sequence[str] | None
) -> Work:
    """In a worker: (number of an evaluator, a shard's samples) -> (rows, reasons)."""
    from gpo_data.generation.measure import evaluators_of, measure_groups
    from gpo_data.generation.travel import arrived

    with arrived(recipe, files) as recipe:  # without the policy from here on, which no evaluator reads
        chosen = beside(evaluators_of(recipe, names), actors)
    turn = threading.Lock()

    def result(job: tuple[int, list[bytes]]) -> tuple[list[dict[str, Any]], list[str]]:
        number, samples = job
        groups = (from_sample(open_archive(blocks + END)) for blocks in samples)
        with turn:
            rows, reasons = zip(*measure_groups(chosen[number], groups), strict=True)
        return list(chain(*rows)), list(chain(*reasons))

    return result


def redrawing(recipe: Recipe, files: dict[str, Files], actors: dict[str, list[Any]]) -> Work:
    """In a worker: members with their groups -> what drawing them again gives."""
    from gpo_data.generation.redraw import Part, redraw_members

    recipe, model, measuring = open_parts(recipe, files, actors)
    turn = threading.Lock()

    def result(job: Part) -> Any:
        rows, samples, columns = job
        groups = [from_sample(open_archive(blocks + END), images=False) for blocks in samples]
        with turn:
            return redraw_members(recipe, model, measuring, columns, rows, groups)

    return result

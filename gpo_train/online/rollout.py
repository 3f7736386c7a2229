"""An iteration drawn: prompts and weights written down, groups drawn with them and committed, what came of it noted.

    prompts.jsonl, policy/  ->  dataset <run>-it<i>  ->  grid.png, summary.json

What always holds: the weights are those that begin the iteration's first epoch, which its checkpoint holds, so they are
written again by whoever goes on and are the same; an iteration with a summary is never drawn again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console

from gpo_data import evaluators, models
from gpo_data.audit.show import grid
from gpo_data.errors import Interrupted, RunError, UsageError
from gpo_data.generation.generate import draw
from gpo_data.generation.plan import plan
from gpo_data.generation.progress import Clock
from gpo_data.generation.remote import Begin, kept_workers
from gpo_data.generation.worker import finish_group
from gpo_data.lake.shard import dataset_folder, sidecar_path
from gpo_data.models import Model, repeat
from gpo_data.progress import EVERY
from gpo_data.recipe import Online, Recipe
from gpo_train.export import save_policy
from gpo_train.online.choose import choose, first_prompts
from gpo_train.online.iterations import Iteration, Summary, summarise, write_prompts
from gpo_train.policy import Policy

GRID_PROMPTS, GRID_MEMBERS = 4, 8
DRAWING, STOPPED = "drawing", "stopped"


@dataclass(frozen=True)
class Ranks:
    """The processes that draw together: which one this is, and how they wait for each other."""

    rank: int = 0
    world: int = 1
    barrier: Callable[[str], object] = lambda name: None
    broadcast: Callable[[str], str] = lambda text: text  # what the first rank says

    @property
    def first(self) -> bool:
        return self.rank == 0


class Rollout:
    """Draws iterations of `recipe` with weights that change; model and evaluators stay open between them."""

    def __init__(
        self,
        recipe: Recipe,
        online: Online,
        console: Console,
        loggers: Callable[[], list[Any]],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.recipe, self.online, self.console, self.loggers, self.stopping = recipe, online, console, loggers, stopping
        self._model: Model | None = None
        self._evaluators: list[evaluators.Evaluator] = []
        self._workers: Begin | None = None
        self._begun = ExitStack()
        self._told = 0.0

    def draw(self, iteration: Iteration, writer: Policy, ranks: Ranks, step: int) -> None:
        """Draw what the iteration lacks, with the weights of `writer`. Raises Interrupted, RunError.

        Args:
            step: optimiser step, for the loggers.
        """
        started, clock = time.monotonic(), Clock()
        with clock.time("policy"):
            if ranks.first and not (iteration.folder / "prompts.jsonl").is_file():
                chosen = choose(self.recipe, self.online, iteration)
                write_prompts(chosen, iteration.folder / "prompts.jsonl")
            # Also where the base draws: to compare.
            save_policy(writer, iteration.policy, write=ranks.first)
            ranks.barrier("policy")
            recipe = iteration.recipe(self.recipe, self.online.rollout_policy)
            by_workers = recipe.ray.wanted
            model, changed = self._open(recipe) if ranks.first or not by_workers else (None, None)
        self.console.print(f"iteration {iteration.number}: dataset {iteration.name}", soft_wrap=True)
        if by_workers:
            self._have_drawn(recipe, ranks)
        else:
            self._evaluators = evaluators.build(recipe, opened=self._evaluators)
            self._expect_going_on()
            draw(recipe, self.console, model, (ranks.rank, ranks.world), clock, measuring=self._evaluators)
        ranks.barrier("drawn")
        folder = dataset_folder(recipe.lake, iteration.name)
        missing = [shard for shard in plan(recipe) if not sidecar_path(folder, shard.shard_id).is_file()]
        if missing:
            raise RunError(
                f"dataset {iteration.name}: {len(missing)} shards are being drawn by another process; run the same "
                f"command again when it has finished"
            )
        if ranks.first:
            assert model is not None
            self._picture(iteration, model)
            seconds = {"draw": time.monotonic() - started} | clock.seconds
            summary = dataclasses.replace(
                summarise(self.recipe, iteration.name),
                iteration=iteration.number,
                weights_changed=changed,
                seconds=seconds,
            )
            shown = {f"online/{k}": v for k, v in summary.measured().items()}
            shown |= {f"seconds/{k}": v for k, v in seconds.items()}
            for logger in self.loggers():
                logger.log_metrics(shown, step=step)
            self.console.print(f"iteration {iteration.number}: " + line(summary), soft_wrap=True)
            iteration.write(summary)
        if model is not None:
            self._offload(model)
        ranks.barrier("summary")

    def _expect_going_on(self) -> None:
        """`draw` listens for signals by itself: this is for one that came before it did."""
        if self.stopping():
            raise Interrupted

    def _have_drawn(self, recipe: Recipe, ranks: Ranks) -> None:
        """The first rank's workers draw, and keep their models for the next iteration; the other ranks wait.

        They hear of it every few seconds, since a collective that waits for hours would be taken for dead.
        """
        if not ranks.first:
            while (heard := ranks.broadcast("")) == DRAWING:
                pass
            if heard:
                raise Interrupted if heard == STOPPED else RunError(f"rank 0: {heard}")
            return

        def tick() -> None:
            if time.monotonic() - self._told > EVERY:
                self._told = time.monotonic()
                ranks.broadcast(DRAWING)

        try:
            self._expect_going_on()
            if self._workers is None:
                self._workers = self._begun.enter_context(kept_workers(recipe, self.console, tick))
            draw(recipe, self.console, workers=self._workers)
        except Interrupted:
            ranks.broadcast(STOPPED)
            raise
        except (RunError, UsageError) as error:
            ranks.broadcast(str(error))
            raise
        ranks.broadcast("")

    def close(self) -> None:
        """End the workers and the evaluators' processes."""
        evaluators.close(self._evaluators)
        self._begun.close()
        self._workers = None

    def _open(self, recipe: Recipe) -> tuple[Model, float | None]:
        """The model that draws, with the recipe's policy in it, on the device; the share of weights that it changed."""
        if self._model is None:
            self._model = models.load(models.resolve(recipe.model, recipe.revision), recipe.sampler)
        model: Any = self._model
        model.place(model.device)
        changed = None
        if recipe.policy:
            changed = models.load_policy_weights(model, models.policy_path(recipe.policy), recipe.seed)
        return model, changed

    def _offload(self, model: Any) -> None:
        """Off the GPU while the policy trains."""
        if model.device.type != "cpu":
            model.place(torch.device("cpu"))
            torch.cuda.empty_cache()

    def _picture(self, iteration: Iteration, model: Model) -> None:
        """Fixed prompts and seeds, drawn by this iteration's policy: on disk and in TensorBoard."""
        every = self.online.grid_every
        if not every or iteration.number % every:
            return
        self._evaluators = evaluators.build(self.recipe, opened=self._evaluators)
        groups = []
        shown = len(first_prompts(self.recipe, GRID_PROMPTS))
        few_prompts = dataclasses.replace(self.recipe, task=dataclasses.replace(self.recipe.task, num_prompts=shown))
        for planned in [g for shard in plan(few_prompts) for g in shard.groups]:
            seeds = planned.seeds[:GRID_MEMBERS]
            conditioning = model.encode([planned.prompt.text])
            latents = model.draw(repeat(conditioning, [len(seeds)]), seeds)
            one = {k: v[0] for k, v in conditioning.items()}
            few = dataclasses.replace(planned, seeds=seeds)
            groups.append(finish_group(self.recipe, model, self._evaluators, few, latents, one))
        sheet = grid(groups)
        sheet.save(iteration.folder / "grid.png")
        for logger in self.loggers():
            experiment: Any = getattr(logger, "experiment", None)
            if hasattr(experiment, "add_image"):
                experiment.add_image("grid", np.asarray(sheet), iteration.number, dataformats="HWC")


def line(summary: Summary) -> str:
    """A summary for people and for grep."""
    exact = "" if summary.exact is None else f"  exact {100 * summary.exact:.1f}%"
    changed = "" if summary.weights_changed is None else f"  weights changed {100 * summary.weights_changed:.2f}%"
    return (
        f"reward {summary.reward:.3f}{exact}  dead {summary.dead}/{summary.groups}  "
        f"diversity {summary.diversity:.3f}{changed}"
    )

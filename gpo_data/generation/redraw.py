"""`gpo-data verify --redraw`: members drawn again from their seeds, beside what was stored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console

from gpo_data import evaluators, hardware, models
from gpo_data.errors import UsageError
from gpo_data.generation import actors
from gpo_data.generation.plan import PlannedGroup
from gpo_data.generation.remote import Job, open_in, workers_for
from gpo_data.generation.worker import finish_group
from gpo_data.group import Group
from gpo_data.lake.manifest import drawing_device, imported, settle
from gpo_data.lake.record import Record
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.shard import sidecars
from gpo_data.lake.sidecar import measured_columns, read_rows
from gpo_data.models import repeat
from gpo_data.recipe import Recipe
from gpo_data.status import OK

# The largest difference that is rounding, as a share of the latents' norm. A batch of another size sums in another
# order; measured with the tiny model, batches of 1, 3 and 7 against 16: 8e-6 in float32, 0.01 in bfloat16. More steps
# and the tensor cores of a GPU add to it. Another noise seed or another prompt is 0.8 and more away.
TOLERANCE = {"float32": 0.01, "bfloat16": 0.2, "float16": 0.2}


@dataclass(frozen=True)
class Redrawn:
    """A member that was drawn again."""

    group_key: str
    member: int
    difference: float  # norm of the difference of the latents, as a share of the norm of the stored ones
    tolerance: float
    reward: float | None
    reward_again: float | None

    @property
    def agrees(self) -> bool:
        """The latents are the stored ones but for rounding; NaN are not."""
        return self.difference <= self.tolerance


def redraw(recipe: Recipe, folder: AnyPath, count: int, console: Console | None = None) -> list[Redrawn]:
    """Draw `count` members again from their seeds, batched otherwise than the first time. Raises UsageError."""
    if imported(folder):
        raise UsageError(f"--redraw: the pictures of {folder} were imported, not drawn; leave it out")
    rows = [r for s in sidecars(folder) for r in read_rows(s) if r["status"] == OK]
    picks = np.random.default_rng(recipe.seed).permutation(len(rows))[:count]
    recipe = settle(recipe, drawing_device(recipe))
    size = recipe.sampler.batch_size
    parts = [[rows[int(i)] for i in picks[start : start + size]] for start in range(0, len(picks), size)]
    columns = measured_columns(sidecars(folder)[0]) if rows else {}
    with workers_for(recipe, console or Console(quiet=True)) as workers:
        if workers is not None:
            open_in(workers, recipe, actors.redrawing)
            jobs = [Job(f"{len(part)} members", partial(_samples, part, folder, columns)) for part in parts]
            found = dict(workers.run(jobs))
            return [row for job in jobs for row in found[job]]
    hardware.take_threads()
    model = models.load(models.resolve(recipe.model, recipe.revision), recipe.sampler)
    if recipe.policy:
        models.load_policy_weights(model, models.policy_path(recipe.policy), recipe.seed)
    chosen, again = evaluators.build(recipe), list[Redrawn]()
    for part in parts:
        groups = [Record.of(row, folder).group(images=False) for row in part]
        again += redraw_members(recipe, model, chosen, columns, part, groups)
    return again


Part = tuple[list[dict[str, Any]], list[bytes], dict[str, pa.DataType]]


def _samples(part: list[dict[str, Any]], folder: AnyPath, columns: dict[str, pa.DataType]) -> Part:
    return part, [Record.of(row, folder).blocks() for row in part], columns


def redraw_members(
    recipe: Recipe,
    model: Any,
    chosen: list[Any],
    columns: dict[str, pa.DataType],
    rows: list[dict[str, Any]],
    groups: list[Group],
) -> list[Redrawn]:
    """One batch: the dataset's target columns, sidecar rows, and the group of each."""
    embeds = {k: torch.stack([g.conditioning[k] for g in groups]) for k in groups[0].conditioning}
    drawn_again, found = model.draw(repeat(embeds, [1] * len(rows)), [r["seed"] for r in rows]), list[Redrawn]()
    for row, group, latent in zip(rows, groups, drawn_again, strict=True):
        planned = PlannedGroup(group.key, group.prompt, [row["seed"]], columns)
        drawn = finish_group(recipe, model, chosen, planned, latent[None], group.conditioning)
        stored, member = group.latents[row["member"]].float(), row["member"]
        difference = ((latent.float().to(stored.device) - stored).norm() / stored.norm().clamp(min=1e-12)).item()
        tolerance = TOLERANCE[recipe.sampler.dtype]
        found.append(Redrawn(group.key, member, difference, tolerance, group.rewards[member], drawn.rewards[0]))
    return found

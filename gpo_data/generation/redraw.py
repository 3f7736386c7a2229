"""`gpo-data verify --redraw`: members drawn again from their seeds, beside what was stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gpo_data import evaluators, hardware, models
from gpo_data.generation.plan import PlannedGroup
from gpo_data.generation.worker import finish_group
from gpo_data.lake.manifest import settle
from gpo_data.lake.record import Record
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.shard import sidecars
from gpo_data.lake.sidecar import read_rows
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


def redraw(recipe: Recipe, folder: AnyPath, count: int) -> list[Redrawn]:
    """Draw `count` members again from their seeds, batched otherwise than the first time. Raises UsageError."""
    rows = [r for s in sidecars(folder) for r in read_rows(s) if r["status"] == OK]
    picks = np.random.default_rng(recipe.seed).permutation(len(rows))[:count]
    recipe = settle(recipe)
    hardware.take_threads()
    model = models.load(models.resolve(recipe.model, recipe.revision), recipe.sampler)
    if recipe.policy:
        models.load_policy_weights(model, models.policy_folder(recipe.policy), recipe.seed)
    chosen, found = evaluators.build(recipe), list[Redrawn]()
    size = recipe.sampler.batch_size
    for start in range(0, len(picks), size):
        part = [rows[int(i)] for i in picks[start : start + size]]
        groups = [Record.of(r, folder).group(images=False) for r in part]
        embeds = {k: torch.stack([g.conditioning[k] for g in groups]) for k in groups[0].conditioning}
        again = model.draw(repeat(embeds, [1] * len(part)), [r["seed"] for r in part])
        for row, group, latent in zip(part, groups, again, strict=True):
            planned = PlannedGroup(group.key, group.prompt, [row["seed"]])
            drawn = finish_group(recipe, model, chosen, planned, latent[None], group.conditioning)
            stored, member = group.latents[row["member"]].float(), row["member"]
            difference = ((latent.float().to(stored.device) - stored).norm() / stored.norm().clamp(min=1e-12)).item()
            tolerance = TOLERANCE[recipe.sampler.dtype]
            found.append(Redrawn(group.key, member, difference, tolerance, group.rewards[member], drawn.rewards[0]))
    return found

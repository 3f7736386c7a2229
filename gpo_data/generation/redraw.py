"""`gpo-data verify --redraw`: members drawn again from their seeds, beside what was stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gpo_data import evaluators, hardware, models
from gpo_data.generation.plan import PlannedGroup
from gpo_data.generation.worker import finish_group
from gpo_data.lake.manifest import settle
from gpo_data.lake.record import Record
from gpo_data.lake.shard import sidecars
from gpo_data.lake.sidecar import read_rows
from gpo_data.models import repeat
from gpo_data.recipe import Recipe
from gpo_data.status import OK


def redraw(recipe: Recipe, folder: Path, count: int) -> list[dict]:
    """Draw `count` members again from their seeds: [{group_key, member, difference, reward, reward_again}].

    They are batched differently from the first time, so low bits may differ; `difference` is the largest absolute
    difference of the latents.
    """
    rows = [r for s in sidecars(folder) for r in read_rows(s)]
    rows = [r for r in rows if r["status"] == OK]
    picks = np.random.default_rng(recipe.seed).permutation(len(rows))[:count]
    recipe = settle(recipe)
    hardware.take_threads()
    model = models.load(models.resolve(recipe.model, recipe.revision), recipe.sampler)
    if recipe.policy:
        models.load_policy_weights(model, models.policy_folder(recipe.policy))
    judges, found = evaluators.build(recipe), []
    size = recipe.sampler.batch_size
    for start in range(0, len(picks), size):
        part = [rows[int(i)] for i in picks[start : start + size]]
        groups = [Record.of(r, folder).group(images=False) for r in part]
        embeds = {k: torch.stack([g.conditioning[k] for g in groups]) for k in groups[0].conditioning}
        again = model.draw(repeat(embeds, [1] * len(part)), [r["seed"] for r in part])
        for row, group, latent in zip(part, groups, again, strict=True):
            planned = PlannedGroup(group.key, group.prompt, [row["seed"]])
            drawn = finish_group(recipe, model, judges, planned, latent[None], group.conditioning)
            difference = (latent.float() - group.latents[row["member"]].float()).abs().max().item()
            found.append(
                {
                    "group_key": group.key,
                    "member": row["member"],
                    "difference": difference,
                    "reward": group.rewards[row["member"]],
                    "reward_again": drawn.rewards[0],
                }
            )
    return found

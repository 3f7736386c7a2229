"""Whether a run can move weights by as much as one of two bytes can show.

AdamW moves a weight by about the learning rate a step, so by learning_rate x steps at most. A number of two bytes has
neighbours 2^-8 (bfloat16) or 2^-11 (float16) of its size away; a move below half of that is drawn by chance alone
(models/rounding.py), right on average and noisy.
"""

from __future__ import annotations

import torch
from torch import nn

from gpo_data.recipe import Recipe, Train

STEP = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # between neighbours, of a number's size; at least half of it


def warning(recipe: Recipe, settings: Train, denoiser: nn.Module, online: bool = False) -> str | None:
    """A line for a run that cannot leave the dead zone of most of its weights; None where it can."""
    dtype = recipe.sampler.dtype
    prompts = (recipe.online.prompts if online else None) or recipe.task.num_prompts
    if settings.tuning != "full" or dtype not in STEP or prompts is None:
        return None
    steps = settings.epochs * settings.num_inner_epochs * max(1, prompts // settings.groups_per_step)
    farthest = settings.learning_rate * steps
    half = STEP[dtype] / 2 * median(denoiser)
    if farthest >= half:
        return None
    return (
        f"train.learning_rate: {settings.learning_rate:g} over {steps} steps moves a weight by {farthest:.1e} at most, "
        f"and half a step of {dtype}, in which pictures are drawn, is {half:.1e} at the median weight: single weights "
        f"are rounded at random, so that the moves show on average. A higher rate, train.tuning: lora or "
        f"sampler.dtype: float32 shows them all"
    )


def median(denoiser: nn.Module) -> float:
    """Of the sizes of its weights; of at most 10,000 from each tensor."""
    parts = [p.detach().flatten()[:: max(1, p.numel() // 10_000)].abs().float().cpu() for p in denoiser.parameters()]
    return torch.cat(parts).median().item()

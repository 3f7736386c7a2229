"""A policy's weights in the two bytes that draw, so that a small move shows in proportion.

    drawn = R(r(base) + (weight - base)),     r: to the nearest number, as the model itself is opened
                                              R: up or down at random, to where it lies on average

A bfloat16 number has 8 bits of precision. Rounded to the nearest, a weight does not move before training has moved it
by 2^-9 of its size, and most weights of a run at a small rate never do; rounded at random each of them shows a small
move with the probability that makes the sum right. What has not moved is drawn exactly as the model's own. Measured by
`python -m tests.bench.rounding`: of an error's fall, nearest shows 0% at moves of 2e-8 and random all of it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from gpo_data.models.weights import by_name


def round_randomly(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """x in a type of two bytes: one of the two numbers around it, with probabilities whose mean is x."""
    x = x.float()
    nearest = x.to(dtype)
    error = x - nearest.float()
    away = ((error > 0) == (nearest > 0)) | (nearest == 0)  # from zero: bits of a number count up from there
    other = (nearest.abs().view(torch.int16) + torch.where(away, 1, -1).to(torch.int16)).view(dtype)
    other = torch.where(nearest == 0, torch.sign(error).to(dtype) * other.abs(), torch.copysign(other, nearest))
    gap = other.float() - nearest.float()
    chance = torch.where((error != 0) & gap.isfinite(), error / gap, 0.0)
    return torch.where(torch.rand(x.shape, generator=generator) < chance, other, nearest)


def drawn_weights(
    policy: list[Path], base: list[Path], dtype: torch.dtype, seed: int
) -> tuple[dict[str, Tensor], float]:
    """(a denoiser's weights as they draw, the share of them that is not the model's own).

    Args:
        policy, base: safetensors files of the trained and the model's own weights.
        dtype: that draws; in float32 the weights are as they were trained.
        seed: of the rounding; a weight's name counts too.
    """
    found: dict[str, Tensor] = {}
    own = by_name(base)
    changed = total = 0
    for file in policy:
        with safe_open(file, "pt") as trained:
            for name in sorted(trained.keys()):
                weight = trained.get_tensor(name)
                before = own[name]() if name in own else None
                plain = before.to(dtype) if before is not None else weight.to(dtype)
                if dtype != torch.float32 and weight.is_floating_point() and before is not None:
                    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
                    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
                    moved = plain.float() + (weight.float() - before.float())
                    weight = round_randomly(moved, dtype, generator)
                found[name] = weight.to(dtype) if weight.is_floating_point() else weight
                changed, total = changed + int((found[name] != plain).sum()), total + weight.numel()
    return found, changed / max(total, 1)

"""How a group's advantages are put to use, `train.weighting`: one z of the whole group, or one of each pair.

    zscore:   z = (1/G) sum_i A_i s_i                     Group Preference Optimization
    sign:     z = (1/G) sum_i sign(A_i) s_i               its hard version
    all:      z = (s_b - s_w) / 2 of every pair in which b is better than w        Diffusion-DPO, the baseline
    max:      of the best and the worst
    min:      of the pair with the smallest margin that is not 0

The identity sum_{i<j} (A_i - A_j)(s_i - s_j) = G sum_i A_i s_i says that `zscore` with a linear loss is every pair at
once, weighted by its margin. Half of a pair's difference is its mean over two members, so that z is of one size.
A dead group has nothing to say, and none reaches this file.

Sources: GPO, arXiv 2505.11070; Diffusion-DPO, arXiv 2311.12908.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpo_data.recipe.training import PAIRS, Weighting

ROUNDING = 1e-9  # advantages that differ by no more are of one reward


def weights(advantages: Tensor, weighting: Weighting) -> Tensor:
    """w [G] of `zscore` or `sign`."""
    return advantages if weighting == "zscore" else torch.sign(advantages) * (advantages.abs() > ROUNDING)


def pairs(advantages: Tensor, weighting: Weighting) -> tuple[Tensor, Tensor]:
    """(better [P], worse [P]) member indices of `all`, `max` or `min`. Ties go to the lower index.

    Raises ValueError where no member is better than another.
    """
    margin = advantages[:, None] - advantages[None, :]
    if not (margin > ROUNDING).any():
        raise ValueError(f"all {len(advantages)} members are equal: the group is dead and has no pair")
    if weighting == "max":
        return advantages.argmax()[None], advantages.argmin()[None]
    if weighting == "min":
        margin = torch.where(margin > ROUNDING, margin, torch.inf)
        best = margin.argmin()
        return best[None] // len(advantages), best[None] % len(advantages)
    better, worse = torch.nonzero(margin > ROUNDING, as_tuple=True)
    return better, worse


def z_of(s: Tensor, advantages: Tensor, weighting: Weighting) -> Tensor:
    """z of s [G]: a scalar, or [P] of pairs."""
    if weighting in PAIRS:
        better, worse = pairs(advantages, weighting)
        return (s[better] - s[worse]) / 2
    return (weights(advantages, weighting) * s).mean()

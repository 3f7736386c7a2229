"""pnapo:  L = mean over pairs of -log sigmoid(-beta f(r_b - r_w) g(n) z),  z = (s_b - s_w) / 2, each at its own noise.

    f(x) = max(0, 2 sigmoid(x) - 1)                  pairs of a larger gap in reward pull harder
    g(n) = 1 until step n1, then a cosine down to 1/2 at n2, and 1/2 from there on         train.beta_decay: [n1, n2]

`noise: own` is what makes it PNAPO: (x_0, e) are the ends of the path that drew the member. Its beta (2000 or 5000)
stands before s_b - s_w, ours before half of it: take twice theirs.
Source: PNAPO, arXiv 2605.09433, after public notes of the paper; its authors have published no code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gpo_data.recipe import Train
from gpo_train.objectives.pairs import pairs
from gpo_train.objectives.terms import Objective, Terms


def loss(terms: Terms, settings: Train) -> Tensor:
    rewards = terms.expect_rewards()
    better, worse = pairs(terms.advantages, settings.weighting)
    # With several rewards r may say otherwise than A, in which each counts alike: such a pair teaches nothing.
    gap = (2 * torch.sigmoid(rewards[better] - rewards[worse]) - 1).clamp(min=0)
    beta = settings.beta * annealed(terms.step, settings.beta_decay) * gap
    return softplus(beta * (terms.s[better] - terms.s[worse]) / 2).mean()


def annealed(step: int, between: list[int] | None) -> float:
    """g(n)."""
    if between is None or step <= between[0]:
        return 1.0
    share = min(1.0, (step - between[0]) / max(1, between[1] - between[0]))
    return 0.75 + 0.25 * math.cos(math.pi * share)


OBJECTIVE = Objective(loss, unit=lambda settings: settings.beta)

"""ipo:  L = (2 z + 1 / (2 beta))^2,  z of each pair, (s_b - s_w) / 2: a margin to reach, and not to exceed.

Where a sigmoid never is content, this pulls back a pair that is further apart than 1 / (2 beta). Of a whole group
(`zscore`) z is its mean, the same formula. Its gradient at the reference is 2 / beta per unit of z.
Source: IPO, arXiv 2310.12036, as diffusers' train_diffusion_dpo.py writes it for denoising errors (there the line reads
`args.beta`, which its parser does not have: it stops with an error).
"""

from __future__ import annotations

from torch import Tensor

from gpo_data.recipe import Train
from gpo_train.objectives.pairs import z_of
from gpo_train.objectives.terms import Objective, Terms


def loss(terms: Terms, settings: Train) -> Tensor:
    return ((2 * z_of(terms.s, terms.advantages, settings.weighting) + 1 / (2 * settings.beta)) ** 2).mean()


OBJECTIVE = Objective(loss, unit=lambda settings: 2 / settings.beta)

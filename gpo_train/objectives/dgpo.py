"""dgpo:  L = (1/G) sum_i sg[sigmoid(beta z)] A_i err_i,  z = (1/G) sum_i A_i s_i,  sg: no gradient.

Its gradient is that of `logsigmoid` divided by beta: AdamW and a gradient norm in the units of the error see the same.
What differs is around it: its authors clip (`clip_range`, terms.py: 0.001 to 0.05), and weigh `kl`, the distance to
the base, in units of the error (0.02). Source: DGPO, arXiv 2510.08425, Eq. 17, and its code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpo_data.recipe import Train
from gpo_train.objectives.logsigmoid import gate
from gpo_train.objectives.pairs import z_of
from gpo_train.objectives.terms import Objective, Terms


def loss(terms: Terms, settings: Train) -> Tensor:
    z = z_of(terms.s.detach(), terms.advantages, settings.weighting)
    return (torch.sigmoid(settings.beta * z) * z_of(terms.error, terms.advantages, settings.weighting)).mean()


OBJECTIVE = Objective(loss, watch=gate)

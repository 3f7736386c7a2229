"""kto:  L = mean_i (1 - sigmoid(y_i beta (-s_i - k))),  k = sg[max(0, mean_i -s_i)],  y_i = 1 where A_i > 0, else -1

Each member by itself, liked or not, against the group's mean gain: no pairs, and no scale of rewards.
Source: Diffusion-KTO, arXiv 2404.04465, and its code with halo `sigmoid`, bce_offset `none`, both lambdas 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpo_data.recipe import Train
from gpo_train.objectives.pairs import ROUNDING
from gpo_train.objectives.terms import Objective, Terms


def loss(terms: Terms, settings: Train) -> Tensor:
    gain = -terms.s
    liked = torch.where(terms.advantages > ROUNDING, 1.0, -1.0)
    zero = gain.mean().clamp(min=0).detach()
    return (1 - torch.sigmoid(liked * settings.beta * (gain - zero))).mean()


OBJECTIVE = Objective(loss, unit=lambda settings: settings.beta)

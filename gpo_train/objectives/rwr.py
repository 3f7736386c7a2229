"""rwr:  L = sum_i w_i err_i,  w = softmax over the group of r_i / train.temperature

Reward-weighted fine-tuning: plain denoising of all members, the better the more. It compares with no reference.
Source: reward-weighted regression as in DDPO, arXiv 2305.13301, and its code, whose `temperature` is 1 / ours (5) and
whose weights are taken a prompt. flow_grpo's `rwr` takes the rewards themselves for weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpo_data.recipe import Train
from gpo_train.objectives.terms import Objective, Terms


def loss(terms: Terms, settings: Train) -> Tensor:
    return (torch.softmax(terms.expect_rewards() / settings.temperature, 0) * terms.error).sum()


OBJECTIVE = Objective(loss, reference=False)

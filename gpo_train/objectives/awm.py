"""awm:  L = mean_i max(-A_i p_i, -A_i clamp(p_i, 1 - c, 1 + c)),  p_i = exp(err_old_i - err_i),  c = train.clip_range

Advantage-weighted matching: a policy gradient whose likelihood is the matching loss. At the old policy p is 1 and the
gradient that of `linear`. The old policy is the reference where that is `stored`; beside another one, for `kl`,
the old one's errors are kept. clip_range 0 does not clip. Its authors' advantages are clamped at 5 and divided by 5.
Source: AWM, arXiv 2509.25050, and its code with weighting `Uniform`, loss_type `exp_first`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpo_data.recipe import Train
from gpo_train.objectives.pairs import weights
from gpo_train.objectives.terms import Objective, Terms


def loss(terms: Terms, settings: Train) -> Tensor:
    a, ratio = weights(terms.advantages, settings.weighting), torch.exp(-terms.since_old)
    if not settings.clip_range:
        return (-a * ratio).mean()
    kept = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
    return torch.maximum(-a * ratio, -a * kept).mean()


OBJECTIVE = Objective(loss)

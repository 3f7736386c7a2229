"""gdro:  the whole ranking of a group, position by position, with softened targets (Plackett-Luce).

    u_i = -beta s_i                                                the implicit reward; members sorted, best first
    L   = sum_{i=1}^{G-1} ( log sum_{m>=i} exp u_m - sum_{j>=i} q_i(j) u_j ) + g err_1
    q_i = softmax over j >= i of r_j / tau                         tau = train.temperature, g = train.top_weight

err_1 is the best member's own error, which a ranking alone would let grow. With two members, tau -> 0 and g = 0 it is
-log sigmoid(-beta (s_b - s_w)): Diffusion-DPO at twice its beta, ours at 2 beta. Of equal members the first is better.
Source: GDRO, arXiv 2601.02036, Eq. 5 to 9, after public notes of the paper; its authors have published no code. Theirs:
beta 6 or 12 (their squares are sums over elements or means: not said), tau 0.05, g 0.5 or 1, groups of 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpo_data.recipe import Train
from gpo_train.objectives.terms import Objective, Terms


def loss(terms: Terms, settings: Train) -> Tensor:
    rewards = terms.expect_rewards()
    order = torch.argsort(rewards, descending=True, stable=True)
    u, targets = -settings.beta * terms.s[order], rewards[order] / settings.temperature
    # Row i is position i: what stands before it is left out.
    left = torch.ones(len(u), len(u), dtype=torch.bool, device=u.device).triu()[:-1]
    q = torch.where(left, targets, -torch.inf).softmax(-1)
    ranking = torch.where(left, u, -torch.inf).logsumexp(-1) - (q * u).sum(-1)
    return ranking.sum() + settings.top_weight * terms.error[order[0]]


OBJECTIVE = Objective(loss, unit=lambda settings: settings.beta)

"""logsigmoid:  L = -log sigmoid(-beta z),  z of the group or of each pair (pairs.py), computed as softplus(beta z).

Gated by how far z already is: dL/ds_i = beta sigmoid(beta z) w_i / G. With pairs (`max`) it is Diffusion-DPO,
whose loss -log sigmoid(-beta/2 (s_b - s_w)) has the half in it; `all` takes every pair of a group.
Sources: GPO, arXiv 2505.11070; Diffusion-DPO, arXiv 2311.12908.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gpo_data.recipe import Train
from gpo_train.objectives.pairs import z_of
from gpo_train.objectives.terms import Objective, Terms


def loss(terms: Terms, settings: Train) -> Tensor:
    return softplus(settings.beta * z_of(terms.s, terms.advantages, settings.weighting)).mean()


def gate(terms: Terms, settings: Train) -> dict[str, float]:
    """How much of the gradient the loss lets through: one half where the policy is the reference; of pairs the mean."""
    z = z_of(terms.s, terms.advantages, settings.weighting)
    return {"sigmoid_gate": torch.sigmoid(settings.beta * z).mean().item()}


OBJECTIVE = Objective(loss, unit=lambda settings: settings.beta, watch=gate)

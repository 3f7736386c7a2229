"""The loss of one group: an objective (`train.loss`) and the stabilisers, options of all of them. Pure tensors.

    L = objective(terms) + p / 2 (b (1/G) sum_i s_i)^2 + kl b (1/G) sum_i g_i ||f_theta - f_ref||^2

    p = mean_shift_penalty, b = the objective's unit: beta of `logsigmoid`, 1 of `linear`
    g_i = 1; with `kl_judges` 1 of the members whose reward is not to be trusted (lake/uncertainty.py), 0 of the others
    clip_range c > 0: no gradient of members that have moved beyond c from the old policy (terms.py)

`kl` is a trust region: for Gaussian transitions it is proportional to the KL divergence of policy and reference at t,
and where z alone is noise it keeps the policy there. The mean-shift penalty sees what z cannot: s_i of all members may
grow together. They do where the errors of worse members grow faster, which z rewards, though the policy's own pictures
then become less likely as a whole; on pictures of the reference itself mean s should stay near 0.

Gradients are clipped in the units of the error, that is of L / b: a gate multiplies them, and a threshold that every
step exceeds would take it back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpo_data.recipe import Train
from gpo_data.recipe.training import Loss, Weighting
from gpo_train.objectives.terms import Objective, Terms, clipped, objective_of


def group_loss(
    s: Tensor,
    advantages: Tensor,
    weighting: Weighting = "zscore",
    loss: Loss = "logsigmoid",
    beta: float = 1000.0,
    mean_shift_penalty: float = 0.0,
) -> Tensor:
    """Loss of one group, of any objective that needs no more than s.

    Args:
        s: [G], policy error less reference error, each a mean over elements; or [k, G], of k noise samples, whose
            losses are averaged.
        advantages: [G], not all 0.
        beta: on the scale of a mean over elements.
        mean_shift_penalty: weight of the penalty on the mean of s.

    Returns: a scalar.
    """
    settings = Train(loss=loss, weighting=weighting, beta=beta, mean_shift_penalty=mean_shift_penalty)
    found = [sample_loss(objective_of(loss), Terms(one, advantages), settings) for one in (s if s.ndim == 2 else [s])]
    return torch.stack(found).mean() if s.ndim == 2 else found[0]


def sample_loss(objective: Objective, terms: Terms, settings: Train) -> Tensor:
    """Of one noise sample, without the trust region."""
    if settings.clip_range:
        terms, _ = clipped(terms, settings.clip_range)
    together = settings.mean_shift_penalty / 2 * (objective.unit(settings) * terms.s.mean()) ** 2
    return objective.loss(terms, settings) + together


def penalty(distances: Tensor, kl: float, unit: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """The trust region of one group at one noise sample, a scalar; distances [G]: ||f_theta - f_ref||^2.

    `weights` [G]: of each member; None: 1. The mean is over all members, so that a gated one is held as hard as without
    a gate.
    """
    return kl * unit * (distances if weights is None else weights * distances).mean()

"""The GPO objective: (error differences, advantages) -> loss. Pure tensors.

For a group of G members with advantages A_i (lake/advantage.py) and the denoising errors of policy and reference at the
same (t, e),

    s_i = ||y - f_theta(x_t, t, c)||^2 - ||y - f_ref(x_t, t, c)||^2            (means over elements; s < 0: improved)

    z          = (1/G) sum_i w_i s_i
    linear:      L = z
    logsigmoid:  L = -log sigmoid(-beta z)                                     (gated by how far z already is)

    zscore:      w_i = A_i                                                     Group Preference Optimization
    sign:        w_i = sign(A_i)                                               its hard version
    pairs:       L = mean over pairs (b better than w) of loss of              Diffusion-DPO, the baseline
                 z = (s_b - s_w) / 2, a group of those two
                 all: every pair of unequal members; max: best and worst; min: the smallest non-zero margin

    kl > 0:                  L + kl b (1/G) sum_i ||f_theta - f_ref||^2        b = beta of logsigmoid, 1 of linear
    mean_shift_penalty p:    L + p / 2 (b (1/G) sum_i s_i)^2

`kl` is a trust region: for Gaussian transitions it is proportional to the KL divergence of policy and reference at t,
and where z alone is noise it keeps the policy there. The mean-shift penalty sees what z cannot: s_i of all members may
grow together. They do where the errors of worse members grow faster, which z rewards, though the policy's own pictures
then become less likely as a whole; on pictures of the reference itself mean s should stay near 0.

beta means one thing: z is a mean over members with weights of size one, for pairs too, whose half is the one of
Diffusion-DPO's loss, -log sigmoid(-beta/2 (s_b - s_w)). Gradients are clipped in the units of the error, that is of
L / beta: the gate multiplies them, and a threshold that every step exceeds would take it back.

The identity sum_{i<j} (A_i - A_j)(s_i - s_j) = G sum_i A_i s_i says that `zscore` with `linear` is every pair at once,
weighted by its margin. A dead group has nothing to say, and none reaches this file.

Sources: GPO, arXiv 2505.11070; Diffusion-DPO, arXiv 2311.12908.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gpo_data.recipe.training import Loss, Weighting

PAIRS = ("all", "max", "min")
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


def loss_of(z: Tensor, loss: Loss, beta: float) -> Tensor:
    """`linear`: z; `logsigmoid`: -log sigmoid(-beta z), computed as softplus(beta z)."""
    return z if loss == "linear" else softplus(beta * z)


def units(loss: Loss, beta: float) -> float:
    """What the loss multiplies errors with, and so the penalties too."""
    return beta if loss == "logsigmoid" else 1.0


def group_loss(
    s: Tensor,
    advantages: Tensor,
    weighting: Weighting = "zscore",
    loss: Loss = "logsigmoid",
    beta: float = 1000.0,
    mean_shift_penalty: float = 0.0,
) -> Tensor:
    """Loss of one group.

    Args:
        s: [G], policy error less reference error, each a mean over elements; or [k, G], of k noise samples, whose
            losses are averaged.
        advantages: [G], not all 0.
        beta: scale of `logsigmoid`, on the scale of a mean over elements.
        mean_shift_penalty: weight of the penalty on the mean of s.

    Returns: a scalar.
    """
    if s.ndim == 2:
        rest = (advantages, weighting, loss, beta, mean_shift_penalty)
        return torch.stack([group_loss(one, *rest) for one in s]).mean()
    together = mean_shift_penalty / 2 * (units(loss, beta) * s.mean()) ** 2
    if weighting in PAIRS:
        better, worse = pairs(advantages, weighting)
        return loss_of((s[better] - s[worse]) / 2, loss, beta).mean() + together
    return loss_of((weights(advantages, weighting) * s).mean(), loss, beta) + together


def penalty(distances: Tensor, kl: float, loss: Loss = "logsigmoid", beta: float = 1000.0) -> Tensor:
    """The trust region of one group at one draw, a scalar; distances [G]: ||f_theta - f_ref||^2, mean over elements."""
    return kl * units(loss, beta) * distances.mean()

"""The GPO objective: (errors, rewards) -> loss. Pure tensors; imports only torch.

For a group of G members with rewards r_i and the denoising errors of policy and reference at the same draws (t, e),

    s_i = ||y - f_theta(x_t, t, c)||^2 - ||y - f_ref(x_t, t, c)||^2            (means over elements; s < 0: improved)

    z          = (1/G) sum_i w_i s_i
    linear:      L = z
    logsigmoid:  L = -log sigmoid(-beta z)                                     (gated by how far z already is)

    zscore:      w_i = (r_i - mean r) / std r      (population std)            Group Preference Optimization
    sign:        w_i = sign(r_i - mean r)                                      its hard version
    pairs:       L = mean over pairs (b better than w) of link(s_b - s_w)      Diffusion-DPO, the baseline
                 all: every pair of unequal rewards; max: best and worst; min: the smallest non-zero margin

    kl > 0:      L + kl b (1/G) sum_i ||f_theta - f_ref||^2                    b = beta of logsigmoid, 1 of linear
    hold > 0:    L + hold / 2 (b (1/G) sum_i s_i)^2

`kl` is a trust region: for Gaussian transitions it is proportional to the KL divergence of policy and reference at the
draw's t, and where z alone is noise it keeps the policy at the reference. `hold` sees what z cannot: s_i of all members
may grow together. They do where the errors of worse members grow faster, which z rewards, though the policy's own
pictures then become less likely as a whole; on pictures of the reference itself mean s should stay near 0.

The identity sum_{i<j} (r_i - r_j)(s_i - s_j) = G sum_i (r_i - mean r) s_i says that `zscore` with `linear` is every
pair at once, weighted by its margin. A group whose rewards are all equal has nothing to say: `is_dead`.

Sources: GPO, arXiv 2505.11070; Diffusion-DPO, arXiv 2311.12908.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

Link = Literal["linear", "logsigmoid"]
Weighting = Literal["zscore", "sign", "all", "max", "min"]
PAIRS = ("all", "max", "min")


def is_dead(rewards: Tensor) -> bool:
    """True if no member of the group [G] is better than another."""
    return bool((rewards == rewards[0]).all())


def advantages(rewards: Tensor) -> Tensor:
    """A_i = (r_i - mean r) / std r with the population std; [G] -> [G]. Raises ValueError on a dead group."""
    if is_dead(rewards):
        raise ValueError(f"all {len(rewards)} rewards are {rewards[0].item()}: the group is dead and must be skipped")
    return (rewards - rewards.mean()) / rewards.std(correction=0)


def weights(rewards: Tensor, weighting: Weighting) -> Tensor:
    """w [G] of `zscore` or `sign`."""
    return advantages(rewards) if weighting == "zscore" else torch.sign(rewards - rewards.mean())


def pairs(rewards: Tensor, weighting: Weighting) -> tuple[Tensor, Tensor]:
    """(better [P], worse [P]) member indices of `all`, `max` or `min`. Ties go to the lower index."""
    if is_dead(rewards):
        raise ValueError(f"all {len(rewards)} rewards are {rewards[0].item()}: the group has no pair")
    if weighting == "max":
        return rewards.argmax()[None], rewards.argmin()[None]
    margin = rewards[:, None] - rewards[None, :]
    if weighting == "min":
        margin = torch.where(margin > 0, margin, torch.inf)
        best = margin.argmin()
        return best[None] // len(rewards), best[None] % len(rewards)
    better, worse = torch.nonzero(margin > 0, as_tuple=True)
    return better, worse


def link(z: Tensor, kind: Link, beta: float) -> Tensor:
    """`linear`: z; `logsigmoid`: -log sigmoid(-beta z), computed as softplus(beta z)."""
    return z if kind == "linear" else softplus(beta * z)


def units(kind: Link, beta: float) -> float:
    """What the penalties multiply errors with, as the link does."""
    return beta if kind == "logsigmoid" else 1.0


def group_loss(
    s: Tensor,
    rewards: Tensor,
    weighting: Weighting = "zscore",
    kind: Link = "logsigmoid",
    beta: float = 1000.0,
    hold: float = 0.0,
) -> Tensor:
    """Loss of one group at one draw.

    Args:
        s: [G], policy error less reference error, each a mean over elements.
        rewards: [G], not all equal.
        beta: scale of `logsigmoid`, on the scale of a mean over elements.
        hold: weight of the penalty on the mean of s.

    Returns: a scalar.
    """
    together = hold / 2 * (units(kind, beta) * s.mean()) ** 2
    if weighting in PAIRS:
        better, worse = pairs(rewards, weighting)
        return link(s[better] - s[worse], kind, beta).mean() + together
    return link((weights(rewards, weighting) * s).mean(), kind, beta) + together


def penalty(distances: Tensor, kl: float, kind: Link = "logsigmoid", beta: float = 1000.0) -> Tensor:
    """The trust region of one group at one draw, a scalar; distances [G]: ||f_theta - f_ref||^2, mean over elements."""
    return kl * units(kind, beta) * distances.mean()


def coefficients(s: Tensor, loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """(loss, dL/ds [G]) of `loss_of`, a `group_loss` with all but s given; both detached.

    A group larger than memory is split with it: errors without gradients first, then `(dL/ds_i * s_i).backward()` a
    micro-batch; the sum of those gradients is the gradient of the whole group's loss, standardised and gated as one.
    """
    leaf = s.detach().requires_grad_()
    loss = loss_of(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient

"""The gradient of a group's loss, a micro-batch at a time.

    L = sum_j L_j / k,   L_j = loss(s_j) + penalty(d_j)            noise sample j: s_j, d_j [n] of the group's n members

The k samples are independent terms, so `whole` takes as many of them as fit, exactly. A sample that does not fit is
`split` by gradient caching (GradCache, arXiv 2101.06983): all s_j first, without gradients, then (dL_j/ds_j) s_j a
micro-batch, whose gradients add up to that of the whole group's loss, standardised and gated as one.
What always holds: the gradient does not depend on the size of a micro-batch but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Ask = Callable[[slice], tuple[Tensor, Tensor]]  # flat (sample, member) rows -> (s, d) of them, with gradients
Backward = Callable[[Tensor, bool], None]  # (scaled loss, whether it is the group's last)


@dataclass(frozen=True)
class GroupLoss:
    """Losses by noise sample: `loss` of s [n], `penalty` of d [.], a mean over members."""

    loss: Callable[[Tensor], Tensor]
    penalty: Callable[[Tensor], Tensor]


Watched = tuple[Tensor, Tensor, Tensor]  # losses [samples], s [samples, n], d [samples, n]; detached


def backward(ask: Ask, of: GroupLoss, k: int, n: int, size: int, step: Backward) -> Watched:
    """Add dL/dtheta to the gradients in micro-batches of at most `size` samples of the network."""
    together = max(1, size // n)
    found = [
        (whole if n <= size else split)(ask, of, slice(first * n, min(k, first + together) * n), k, n, size, step)
        for first in range(0, k, together)
    ]
    losses, differences, distances = zip(*found, strict=True)
    return torch.cat(losses), torch.cat(differences), torch.cat(distances)


def whole(ask: Ask, of: GroupLoss, rows: slice, k: int, n: int, size: int, step: Backward) -> Watched:
    difference, distance = (x.view(-1, n) for x in ask(rows))
    loss = torch.stack([of.loss(d.double()) for d in difference])
    loss = loss + torch.stack([of.penalty(d) for d in distance])
    step(loss.sum() / k, rows.stop == k * n)
    return loss.detach(), difference.detach(), distance.detach()


def split(ask: Ask, of: GroupLoss, rows: slice, k: int, n: int, size: int, step: Backward) -> Watched:
    parts = list(_parts(rows, size))
    with torch.no_grad():
        difference, distance = (torch.cat(x) for x in zip(*(ask(part) for part in parts), strict=True))
    loss, share = coefficients(difference.double(), of.loss)
    for part in parts:
        moved, apart = ask(part)
        weighted = (share[part.start - rows.start : part.stop - rows.start] * moved).sum()
        weighted = weighted + of.penalty(apart) * len(apart) / n
        step(weighted / k, part.stop == k * n)
    return loss[None] + of.penalty(distance), difference.view(1, n), distance.view(1, n)


def coefficients(s: Tensor, loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """(loss, dL/ds [n]) of `loss_of`; both detached."""
    leaf = s.detach().requires_grad_()
    loss = loss_of(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def _parts(rows: slice, size: int) -> Iterator[slice]:
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))

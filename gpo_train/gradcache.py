"""The gradient of a group's loss, a micro-batch at a time.

    L = sum_j L_j / k,   L_j = loss(sample j) + penalty(sample j)     noise sample j: s_j, d_j [n] of the n members

The k samples are independent terms, so `whole` takes as many of them as fit, exactly. A sample that does not fit is
`split` by gradient caching (GradCache, arXiv 2101.06983): all of its numbers first, without gradients, then
(dL_j/ds_j) s_j + (dL_j/dd_j) d_j a micro-batch, whose gradients add up to that of the whole group's loss, standardised
and gated as one.
What always holds: the gradient does not depend on the size of a micro-batch but for rounding; and where `most` is the
members of the largest group that the ranks are at, each rank makes the same passes in the same order, as sharded
weights need it, which all ranks gather together. A rank whose group is smaller makes some for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpo_train.rows import Compared

Ask = Callable[[slice], Compared]  # flat (sample, member) rows -> their numbers, s and distance with gradients
Backward = Callable[[Tensor, bool], None]  # (scaled loss, whether it is the group's last)


@dataclass(frozen=True)
class GroupLoss:
    """Losses by noise sample: `loss` of its numbers [n], `penalty` of those of any members [.], a mean over them."""

    loss: Callable[[Compared], Tensor]
    penalty: Callable[[Compared], Tensor]


Watched = tuple[Tensor, Compared]  # losses [samples], numbers [samples, n]; detached


def backward(ask: Ask, of: GroupLoss, k: int, n: int, size: int, step: Backward, most: int = 0) -> Watched:
    """Add dL/dtheta to the gradients in micro-batches of at most `size` samples of the network."""
    most = max(n, most)
    together = max(1, size // most)
    samples = [slice(first * n, min(k, first + together) * n) for first in range(0, k, together)]
    if most <= size:
        found = [whole(ask, of, rows, k, n, step) for rows in samples]
    else:
        found = [split(ask, of, rows, k, n, size, step, most) for rows in samples]
    losses, numbers = zip(*found, strict=True)
    return torch.cat(losses), Compared.cat(numbers)


def whole(ask: Ask, of: GroupLoss, rows: slice, k: int, n: int, step: Backward) -> Watched:
    found = ask(rows).each(lambda x: x.view(-1, n))
    samples = [found.each(lambda x, j=j: x[j]) for j in range(len(found.s))]  # type: ignore[misc]
    loss = torch.stack([of.loss(one) for one in samples])
    loss = loss + torch.stack([of.penalty(one) for one in samples])
    step(loss.sum() / k, rows.stop == k * n)
    return loss.detach(), found.each(Tensor.detach)


def split(ask: Ask, of: GroupLoss, rows: slice, k: int, n: int, size: int, step: Backward, most: int) -> Watched:
    its = list(parts(rows, size, most))

    def ask_part(part: slice) -> Compared:
        return ask(filled(part)).each(lambda x: x[: part.stop - part.start])

    with torch.no_grad():
        found = Compared.cat([ask_part(part) for part in its])
    loss, by_s, by_distance = coefficients(found, of.loss)
    for position, part in enumerate(its, 1):
        some, here = ask_part(part), slice(part.start - rows.start, part.stop - rows.start)
        weighted = (by_s[here] * some.s).sum()
        if by_distance is not None:
            weighted = weighted + (by_distance[here] * some.distance).sum()
        if len(some.s):  # the mean of none is no number
            weighted = weighted + of.penalty(some) * len(some.s) / n
        step(weighted / k, position == len(its) and part.stop == k * n)
    return loss[None] + of.penalty(found), found.each(lambda x: x.view(1, n))


def coefficients(found: Compared, loss_of: Callable[[Compared], Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """(loss, dL/ds [n], dL/dd [n] of a loss of d) of `loss_of`; all detached."""
    s, distance = (x.detach().double().requires_grad_() for x in (found.s, found.distance))
    loss = loss_of(found.replace(s=s, distance=distance))
    by_s, by_distance = torch.autograd.grad(loss, [s, distance], allow_unused=True)
    assert by_s is not None
    return loss.detach(), by_s, by_distance


def parts(rows: slice, size: int, most: int = 0) -> Iterator[slice]:
    """`rows` in slices of at most `size`; then empty ones, for as many slices as `most` rows have."""
    for start in range(rows.start, max(rows.stop, rows.start + most), size):
        yield slice(min(start, rows.stop), min(start + size, rows.stop))


def filled(part: slice) -> slice:
    """What to ask in the place of an empty part: the row before it, whose numbers are left out."""
    return part if part.start < part.stop else slice(part.stop - 1, part.stop)

"""What an objective sees: one noise sample (t, e) of a group of G members, a number a member.

    err_i = ||y - f_theta(x_t, t, c)||^2             mean over elements
    s_i   = err_i - err_ref_i                        below 0: the policy denoises member i better than the reference
    d_i   = ||f_theta - f_ref||^2
    o_i   = err_i - err_old_i                        old: the policy as it began the iteration

Only s and d carry gradients: everything else follows from them and from constants. So a loss may be computed for a
whole group and its gradient sent back a micro-batch at a time (gradcache.py).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpo_data.errors import UsageError
from gpo_data.recipe import Train
from gpo_data.recipe.training import Loss


@dataclass(frozen=True)
class Terms:
    """[G] each; float64 in a run.

    Args:
        s: see above; of an objective that asks no reference the policy's own error.
        rewards: as the snapshot has them.
        reference: err_ref, where it was asked.
        distance: d, where the reference's predictions are there and not only its errors.
        old: o; where no other old policy is kept, the reference is the old one, and it is s.
        t: the noise level, of a rectified flow.
        spreads: mean |y - f| of NFT's implicit predictions, positive and negative.
        step: optimiser steps before this one.
    """

    s: Tensor
    advantages: Tensor
    rewards: Tensor | None = None
    reference: Tensor | None = None
    distance: Tensor | None = None
    old: Tensor | None = None
    t: Tensor | None = None
    spreads: tuple[Tensor, Tensor] | None = None
    step: int = 0

    def expect_rewards(self) -> Tensor:
        """Raises UsageError where an objective that needs them was given none, as by `group_loss`."""
        if self.rewards is None:
            raise UsageError("train.loss: this one needs rewards, which `group_loss` is not given; see Terms")
        return self.rewards

    @property
    def error(self) -> Tensor:
        return self.s if self.reference is None else self.s + self.reference

    @property
    def since_old(self) -> Tensor:
        return self.s if self.old is None else self.old


@dataclass(frozen=True)
class Objective:
    """A loss and what it asks for.

    Args:
        loss: of one noise sample of a group, a scalar.
        reference: whether it compares with one; without, `Terms.s` is the policy's error and a forward pass is saved.
        predictions: whether it needs what the reference says, of which `reference: stored` keeps the errors alone.
        unit: what the loss multiplies errors with; gradients are clipped, and penalties weighed, in it.
        watch: what else is worth logging.
    """

    loss: Callable[[Terms, Train], Tensor]
    reference: bool = True
    predictions: bool = False
    unit: Callable[[Train], float] = lambda settings: 1.0
    watch: Callable[[Terms, Train], dict[str, float]] = lambda terms, settings: {}


def objective_of(loss: Loss) -> Objective:
    """The objective in the file of that name."""
    found: Objective = importlib.import_module(f"gpo_train.objectives.{loss}").OBJECTIVE
    return found


def compares(settings: Train) -> bool:
    """Whether training asks a reference, so that `s` is how far the policy is from it."""
    return settings.objective == "gpo" and bool(objective_of(settings.loss).reference or settings.kl)


def clipped(terms: Terms, clip_range: float) -> tuple[Terms, Tensor]:
    """(the terms, the mask [G]) with no gradient of members that have moved far enough from the old policy.

    As PPO: with ratio exp(-o), where A > 0 and ratio > 1 + c, or A < 0 and ratio < 1 - c.
    Source: DGPO, arXiv 2510.08425, which clips errors and not likelihoods.
    """
    ratio, better = torch.exp(-terms.since_old.detach()), terms.advantages > 0
    far = torch.where(better, ratio > 1 + clip_range, ratio < 1 - clip_range)

    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else torch.where(far, value.detach(), value)

    s = torch.where(far, terms.s.detach(), terms.s)
    return dataclasses.replace(terms, s=s, old=cut(terms.old), distance=cut(terms.distance)), far

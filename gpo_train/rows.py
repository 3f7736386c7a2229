"""The (noise sample, member) rows of a group: what a denoiser is asked of them, and the numbers that come of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpo_data.errors import UsageError
from gpo_data.lake.reader import TrainGroup
from gpo_data.models import Conditioning


@dataclass(frozen=True)
class Compared:
    """Numbers of (noise sample, member) rows, [.] each, float32; only `s` and `distance` carry gradients.

    s: the policy's error less the reference's; its own where no reference is asked. distance: ||f_theta - f_ref||^2, 0
    where only errors of the reference are known. reference: its error. t: the noise level. positive, negative: mean
    |y - f| of f = b f_theta + (1 - b) f_ref and of f = (1 + b) f_ref - b f_theta, where they are asked for. old: the
    error of the policy as it began the iteration, where that is not the reference. kl_weight: of the penalty on
    distance, where members differ in it.
    """

    s: Tensor
    distance: Tensor
    reference: Tensor | None = None
    t: Tensor | None = None
    positive: Tensor | None = None
    negative: Tensor | None = None
    old: Tensor | None = None
    kl_weight: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Compared:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Compared(*(None if value is None else change(value) for value in values))  # type: ignore[arg-type]

    def replace(self, **values: Tensor) -> Compared:
        return dataclasses.replace(self, **values)

    def against(self, old: Tensor) -> Compared:
        """With s against the policy as it began the iteration, in the place of the reference."""
        error = self.s if self.reference is None else self.s + self.reference
        return self.replace(s=error - old, reference=old, old=old)

    @staticmethod
    def cat(parts: Sequence[Compared]) -> Compared:
        named = {field.name: [getattr(part, field.name) for part in parts] for field in dataclasses.fields(Compared)}
        joined: Any = {name: None if values[0] is None else torch.cat(values) for name, values in named.items()}
        return Compared(**joined)


@dataclass(frozen=True)
class Asked:
    """What a denoiser is asked of (noise sample, member) rows, [.] each, on its device.

    unconditional: the conditioning without the prompt, where there is guidance.
    """

    target: Tensor
    x_t: Tensor
    t: Tensor
    conditioning: Conditioning
    unconditional: Conditioning | None = None


def conditioning_of(group: TrainGroup, dropped: Tensor, device: torch.device) -> Conditioning:
    """Of rows, float32: the group's own, or, where `dropped` [.], what stands for no prompt."""
    own = {name: value.to(device).float() for name, value in group.conditioning.items()}
    if not dropped.any():
        return {name: value.expand(len(dropped), *value.shape) for name, value in own.items()}
    if group.unconditional is None:
        raise UsageError(
            f"group {group.key}: expected the dataset's unconditional embedding beside train.caption_dropout or "
            f"guidance_scale, found none: read it with Dataset.groups(unconditional=True)"
        )
    without = own | {name: value.to(device).float() for name, value in group.unconditional.items()}
    if dropped.all():
        return {name: value.expand(len(dropped), *value.shape) for name, value in without.items()}
    which = dropped.long().to(device)
    return {name: torch.stack([own[name], without[name]])[which] for name in own}

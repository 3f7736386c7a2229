"""Where the policy and its reference are asked: k samples of (u, e) a member of a group.

    u in (0, 1) becomes the family's own t, with its scheduler's shift (Model.time), when the policy is asked;
    e ~ N(0, I), or the noise that the member was drawn from; antithetic samples come in pairs, e and -e

With `caption_dropout` p a sample is asked without its prompt with probability p: policy and reference, better and worse
members, all the same.

Shared samples give all members of a group one (u, e), which takes the sample's own difficulty out of the comparison. In
a run they are a pure function of (seed, epoch, group key and prompt), so a resumed run, another rank or a later inner
epoch sees the same ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpo_data.lake.reader import TrainGroup
from gpo_data.models import Model
from gpo_data.recipe import Train

Draw = Callable[..., Tensor]  # (k, generator=...) -> u [k]
LARGE = 2**28  # bytes of noise
STEPS = 1000  # of the schedulers that diffusers' scripts train with
RANGES = {"all": (0.0, 1.0), "high": (0.5, 1.0), "low": (0.0, 0.5)}


@dataclass(frozen=True)
class MemberNoise:
    """e [k, n, C, h, w] of members that have their own, which is too large to hold: made when rows are asked for.

    of: e [k, C, h, w] of a member, or [1, C, h, w] where all samples have the same.
    """

    shape: torch.Size
    of: Callable[[int], Tensor]

    def __getitem__(self, rows: tuple[Tensor, Tensor]) -> Tensor:
        """[., C, h, w] of (sample, member) rows."""
        samples, members = rows
        found = torch.empty(len(members), *self.shape[2:])
        for member in members.unique().tolist():
            here = members == member
            found[here] = self.of(member).expand(self.shape[0], *self.shape[2:])[samples[here]]
        return found


@dataclass(frozen=True)
class NoiseSamples:
    """u [k, n] and e [k, n, C, h, w] of one group; `dropped` [k]: which samples are asked without the prompt."""

    u: Tensor
    e: Tensor | MemberNoise
    dropped: Tensor | None = None


def distribution(settings: Train, whole_steps: bool = False) -> Draw:
    """How u is drawn, before `timestep_range` and the scheduler's shift.

    uniform        u ~ U(0, 1)
    logit_normal   u = sigmoid(m + s n), n ~ N(0, 1)                Stable Diffusion 3, arXiv 2403.03206
    discrete       u = (floor(1000 v) + 1) / 1000, v ~ U(0, 1)      diffusers' scripts: indices into the scheduler;
                   of `whole_steps`, a DDPM's, the middle of each, so that rounding makes no other step of it
    stratified     u_j = (j + v_j) / k, v_j ~ U(0, 1), j < k        one in each k-th part, as VDM's, arXiv 2107.00630
    """

    def logit_normal(k: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.sigmoid(settings.logit_mean + settings.logit_std * torch.randn(k, generator=generator))

    def discrete(k: int, generator: torch.Generator | None = None) -> Tensor:
        return ((torch.rand(k, generator=generator) * STEPS).floor() + (0.5 if whole_steps else 1)) / STEPS

    def stratified(k: int, generator: torch.Generator | None = None) -> Tensor:
        return (torch.arange(k) + torch.rand(k, generator=generator)) / k

    drawn: dict[str, Draw] = {
        "uniform": torch.rand,
        "logit_normal": logit_normal,
        "discrete": discrete,
        "stratified": stratified,
    }
    return drawn[settings.timestep_distribution]


def sample_noise(
    group: TrainGroup,
    k: int = 5,
    seed: int | None = None,
    shared: bool = True,
    timestep_range: tuple[float, float] = (0.0, 1.0),
    draw: Draw = torch.rand,
    large: float = math.inf,
    antithetic: bool = False,
) -> NoiseSamples:
    """k samples a member; `seed` None takes torch's own generator.

    Args:
        shared: one (u, e) for all members; else each has its own, which does not depend on the others.
        timestep_range: of u.
        draw: u in (0, 1), see `distribution`.
        large: bytes from which on noise of each member's own is not held (MemberNoise).
        antithetic: e of samples 1, 3, ... is that of the one before, negated: what is odd in e cancels out.
    """
    members, *shape = group.latents.shape
    low, high = timestep_range
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    normal = _antithetic if antithetic else torch.randn
    e: Tensor | MemberNoise
    if shared:
        generator = torch.Generator().manual_seed(seed)
        u = draw(k, generator=generator)[:, None].expand(k, members)
        e = normal(k, *shape, generator=generator)[:, None].expand(k, members, *shape)
    else:
        # One seed for the whole group, not per place: a `where` that drops a member must not change the others'.
        # Lent members have the numbers of others: their own noise seeds tell them apart.
        lent = group.lent or (False,) * members
        own = [seed_of if away else int(m) for m, seed_of, away in zip(group.members, group.seeds, lent, strict=True)]

        def begin(member: int) -> tuple[Tensor, torch.Generator]:
            generator = torch.Generator().manual_seed((seed + own[member]) % 2**63)
            return draw(k, generator=generator), generator

        def of(member: int) -> Tensor:
            return normal(k, *shape, generator=begin(member)[1])

        u = torch.stack([begin(member)[0] for member in range(members)], dim=1)
        e = _members(torch.Size((k, members, *shape)), of, large)
    return NoiseSamples(low + (high - low) * u, e)


def _antithetic(k: int, *shape: int, generator: torch.Generator) -> Tensor:
    half = torch.randn((k + 1) // 2, *shape, generator=generator)
    return torch.stack([half, -half], dim=1).flatten(0, 1)[:k]


def _members(shape: torch.Size, of: Callable[[int], Tensor], large: float) -> Tensor | MemberNoise:
    """e of `shape` [k, n, C, h, w]; `of`: see MemberNoise."""
    if 4 * shape.numel() >= large:
        return MemberNoise(shape, of)
    return torch.stack([of(member) for member in range(shape[1])], dim=1).expand(shape)


def epoch_noise(
    model: Model,
    settings: Train,
    seed: int,
    epoch: int,
    group: TrainGroup,
    drawn_in: torch.dtype = torch.float32,
) -> NoiseSamples:
    """The group's samples in one epoch of a run. `drawn_in`: precision that the members were drawn in.

    With `noise: own` e is the member's starting noise in all samples, and u alone is sampled.
    """
    # Without the dataset's name, which says what a run is called.
    text = f"{seed}/{epoch}/{group.key.split('/')[-1]}/{group.prompt}"
    digest = _number(text)
    bounds = settings.timestep_range
    low, high = RANGES[bounds] if isinstance(bounds, str) else bounds
    found = sample_noise(
        group,
        settings.timesteps_per_image,
        digest,
        settings.shared_noise,
        (low, high),
        distribution(settings, model.whole_steps),
        LARGE,
        settings.noise == "antithetic",
    )
    if settings.noise == "own":
        shape = group.latents.shape[1:]

        def start(member: int) -> Tensor:
            return model.starting_noise(group.seeds[member : member + 1], tuple(shape), drawn_in)

        found = NoiseSamples(found.u, _members(torch.Size((*found.u.shape, *shape)), start, LARGE))
    if not settings.caption_dropout:
        return found
    generator = torch.Generator().manual_seed(_number(f"{text}/caption"))  # its own: u and e are those without it
    return dataclasses.replace(found, dropped=torch.rand(len(found.u), generator=generator) < settings.caption_dropout)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

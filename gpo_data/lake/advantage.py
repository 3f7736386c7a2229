"""The advantage, and what a dead group is: defined here and nowhere else.

    A_i = (r_i - mean r) / (std + epsilon), at most `clip` away from 0        mean: of the ok members of a group

    std: group     of the group, population std: every group that is alive counts as much as another
         global    of all rewards of the dataset: groups of little spread weigh less (Flow-GRPO's global_std)
         none      1: rewards in their own units (Dr. GRPO, arXiv 2503.20783)

With `group` and epsilon 0 a group's advantages have size 1, however small its spread. Rewards that are learned always
differ a little: an epsilon (1e-4 in Flow-GRPO's code) lets groups of a smaller std than that count for little.

A group is dead when no member is better than another but for rounding, max r - min r <= TOLERANCE max |r|. It teaches
nothing and is skipped and counted. Without the tolerance, rewards 0.1 + 0.2 and 0.3 would be a better and a
worse member, with advantages of 1.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

TOLERANCE = 1e-9  # of the largest reward; float64 sums of a few terms differ by 1e-16 of it
LARGE = 1e140  # the squares of as many rewards as there may be are finite

# The same over the columns `min` and `max` of a group.
DEAD_SQL = f"coalesce(max - min <= {TOLERANCE} * greatest(abs(max), abs(min)), true)"


@dataclass(frozen=True)
class Scale:
    """What the distance to the group's mean is divided by, and how far it may go."""

    std: Literal["group", "global", "none"] = "group"
    epsilon: float = 0.0
    clip: float | None = None


def is_dead(low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Whether groups with these smallest and largest rewards are dead; NaN, a group without any, is."""
    low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    with np.errstate(over="ignore"):
        dead: np.ndarray = ~(high - low > TOLERANCE * np.maximum(np.abs(high), np.abs(low)))
    return dead


def standardise(
    group: np.ndarray, rewards: np.ndarray, groups: int, scale: Scale | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(advantages [N], alive [groups]); `group` [N] is each member's group number. A dead group's advantages are 0."""
    scale = scale or Scale()
    low, high = np.full(groups, np.inf), np.full(groups, -np.inf)
    np.minimum.at(low, group, rewards)
    np.maximum.at(high, group, rewards)
    alive = ~is_dead(low, high)
    rewards, doublings = _within_reach(rewards)
    size = np.maximum(np.bincount(group, minlength=groups), 1)
    mean = np.bincount(group, rewards, groups) / size
    centred, epsilon = rewards - mean[group], np.full(groups, scale.epsilon * 0.5**doublings)
    if scale.std == "group":
        centred, epsilon = _in_sight(group, centred, epsilon)
        std = np.sqrt(np.bincount(group, centred**2, groups) / size)
    else:
        std = np.full(groups, rewards.std() if scale.std == "global" and len(rewards) else 0.5**doublings)
    divisor = np.where(alive, std + epsilon, 1.0)
    advantages = np.where(alive[group], centred / divisor[group], 0.0)
    return advantages if scale.clip is None else advantages.clip(-scale.clip, scale.clip), alive


def together(
    group: np.ndarray, rewards: list[np.ndarray], weights: list[float], groups: int, scale: Scale | None = None
) -> np.ndarray:
    """[N]: the weighted sum of several rewards, each standardised by itself before, whatever its unit and spread.

    What `standardise` then makes of it are the advantages: of a reward that is dead in a group the others say all.
    """
    of_each = dataclasses.replace(scale or Scale(), clip=None)
    parts = [standardise(group, one, groups, of_each)[0] * w for one, w in zip(rewards, weights, strict=True)]
    total: np.ndarray = np.sum(parts, axis=0)
    # What rounding leaves of rewards that contradict each other is no difference between members.
    return np.where(np.abs(total) <= TOLERANCE * np.sum(np.abs(parts), axis=0), 0.0, total)


def _within_reach(rewards: np.ndarray) -> tuple[np.ndarray, int]:
    """Rewards whose squares are finite, and how often they were halved for it, which changes no digit of them."""
    largest = float(np.abs(rewards).max(initial=0.0))
    if largest < LARGE:
        return rewards, 0
    halvings = math.frexp(largest)[1]
    return np.ldexp(rewards, -halvings), halvings


def _in_sight(group: np.ndarray, centred: np.ndarray, epsilon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(centred, epsilon) of groups whose squares would be 0 doubled as often as it takes; no digit changes."""
    largest = np.zeros(len(epsilon))
    np.maximum.at(largest, group, np.abs(centred))
    small = (largest > 0) & (largest < 1 / LARGE)
    doublings = np.where(small, -np.frexp(largest)[1], 0)
    with np.errstate(over="ignore"):
        return np.ldexp(centred, doublings[group]), np.ldexp(epsilon, doublings)


def extremes(group: np.ndarray, advantages: np.ndarray, count: int) -> np.ndarray:
    """Mask [N] of each group's `count` members furthest apart: half of them its best, the rest its worst.

    Of equal members the first ones. The advantages stay those of the whole group.
    """
    order = np.lexsort((-advantages, group))  # stable
    ordered = group[order]
    size = np.bincount(group)[ordered]
    place = np.arange(len(group)) - np.searchsorted(ordered, ordered)
    kept = np.zeros(len(group), bool)
    kept[order] = (place < (count + 1) // 2) | (place >= size - count // 2)
    return kept

"""The advantage, and what a dead group is: defined here and nowhere else.

    A_i = (r_i - mean r) / std r        over the ok members of a group, population std

A group is dead when no member is better than another but for rounding, max r - min r <= TOLERANCE max |r|. It teaches
nothing and is skipped and counted. Without the tolerance, rewards 0.1 + 0.2 and 0.3 would be a better and a
worse member, with advantages of 1.
"""

from __future__ import annotations

import numpy as np

TOLERANCE = 1e-9  # of the largest reward; float64 sums of a few terms differ by 1e-16 of it

# The same over the columns `min` and `max` of a group.
DEAD_SQL = f"coalesce(max - min <= {TOLERANCE} * greatest(abs(max), abs(min)), true)"


def is_dead(low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Whether groups with these smallest and largest rewards are dead; NaN, a group without any, is."""
    low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    dead: np.ndarray = ~(high - low > TOLERANCE * np.maximum(np.abs(high), np.abs(low)))
    return dead


def standardise(group: np.ndarray, rewards: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """(advantages [N], alive [groups]); `group` [N] is each member's group number. A dead group's advantages are 0."""
    size = np.maximum(np.bincount(group, minlength=groups), 1)
    mean = np.bincount(group, rewards, groups) / size
    centred = rewards - mean[group]
    std = np.sqrt(np.bincount(group, centred**2, groups) / size)
    low, high = np.full(groups, np.inf), np.full(groups, -np.inf)
    np.minimum.at(low, group, rewards)
    np.maximum.at(high, group, rewards)
    alive = ~is_dead(low, high)
    return np.where(alive[group], centred / np.where(alive, std, 1.0)[group], 0.0), alive


def extremes(group: np.ndarray, advantages: np.ndarray, count: int) -> np.ndarray:
    """Mask [N] of each group's `count` members furthest apart: half of them its best, the rest its worst.

    Of equal members the first ones. The advantages stay those of the whole group.
    """
    kept = np.zeros(len(group), bool)
    for number in np.unique(group):
        members = np.flatnonzero(group == number)
        ranked = members[np.argsort(-advantages[members], kind="stable")]
        kept[ranked[: (count + 1) // 2]] = True
        kept[ranked[max(len(ranked) - count // 2, 0) :]] = True
    return kept

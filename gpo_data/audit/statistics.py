"""The numbers of an audit: pure functions of matrices [groups, G] with NaN for a member without a reward.

    pass@k      = 1 - C(n-c, k) / C(n, k)                     n members of a group, c right; unbiased (Chen et al. 2021)
    best of k   = sum_i r_(i) C(i-1, k-1) / C(n, k)           expected best reward, r_(1) <= ... <= r_(n)
    margin      = max r - min r                               dead group: no spread (lake/advantage.py)
    drift       = correlation of a picture statistic with the reward, both standardised inside their group

The drift is the direction in which training on these groups would move the pictures; a pooled correlation mixes it
with prompts that are easy and pale for reasons of their own.

Nothing here goes over members or groups one by one: groups with as many members measured (and right) count together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpo_data.audit.members import Members
from gpo_data.lake.advantage import is_dead

MAX_LEVELS = 8  # more distinct difficulties than this are grouped into quantiles
POINTS = 1500  # of a cloud that are drawn; more only darken it
BINS = 8  # of a cloud's line
AT_ONCE = 100_000  # groups
HIGH = 0.5  # a dead group is dead high when at least this share of its members is right, else dead low


@dataclass(frozen=True)
class Level:
    """One difficulty: `label` is a number or a range of numbers."""

    label: str
    groups: int
    members: int
    mean_reward: float
    reward_error: float  # standard error of the mean over groups; NaN with one group
    accuracy: float
    accuracy_error: float
    pass_at_group: float  # share of groups with at least one right member
    alive: int
    dead_low: int
    dead_high: int


@dataclass(frozen=True)
class Cloud:
    """Members by two numbers, as a picture shows them."""

    points: np.ndarray  # [2, at most POINTS], chosen at random
    line: np.ndarray  # [3, at most BINS]: see `quantile_means`


@dataclass(frozen=True)
class Drift:
    """One picture statistic against the reward."""

    name: str
    mean: float  # over all members
    within: float  # correlation inside groups; NaN where no group varies in both
    pooled: float  # correlation over all members
    cloud: Cloud | None  # statistic and reward
    inside_cloud: Cloud | None  # of groups that vary in both: the same, standardised inside groups


@dataclass(frozen=True)
class Figures:
    mean_reward: float
    accuracy: float
    ks: np.ndarray  # 1..G
    pass_at: np.ndarray
    best_of: np.ndarray
    mean: np.ndarray  # [groups]
    std: np.ndarray  # [groups], population
    margin: np.ndarray  # [groups]
    dead_low: np.ndarray  # [groups] bool
    dead_high: np.ndarray  # [groups] bool
    levels: list[Level]
    drifts: list[Drift]

    @property
    def last_k(self) -> int:
        """The largest k with an estimate: G, or less where every group has failed members."""
        return int(self.ks[np.isfinite(self.pass_at)][-1])

    @property
    def dead(self) -> np.ndarray:
        dead: np.ndarray = self.dead_low | self.dead_high
        return dead


def summarise(data: Members) -> Figures:
    r, exact = data.rewards, data.exact
    margin = np.nanmax(r, axis=1) - np.nanmin(r, axis=1)
    mean, std = np.nanmean(r, axis=1), np.nanstd(r, axis=1)
    dead, high = is_dead(np.nanmin(r, axis=1), np.nanmax(r, axis=1)), np.nanmean(exact, axis=1) >= HIGH
    ks = np.arange(1, data.shape[1] + 1)
    return Figures(
        mean_reward=float(np.nanmean(r)),
        accuracy=float(np.nanmean(exact)),
        ks=ks,
        pass_at=pass_at(exact),
        best_of=best_of(r),
        mean=mean,
        std=std,
        margin=margin,
        dead_low=dead & ~high,
        dead_high=dead & high,
        levels=[_level(data, label, chosen, dead, high) for label, chosen in split_levels(data.levels)],
        drifts=[d for name, values in data.image_statistics.items() if (d := drift(name, values, r)) is not None],
    )


def pass_at(exact: np.ndarray) -> np.ndarray:
    """[G]: pass@k of k = 1..G of a matrix of 0 and 1 [groups, G].

    The mean over the groups with at least k measured members; NaN if there is none.
    """
    size = exact.shape[1]
    measured, right = np.isfinite(exact).sum(axis=1), np.nansum(exact, axis=1).astype(int)
    kinds, groups = np.unique(measured * (size + 1) + right, return_counts=True)
    total, counted = np.zeros(size), np.zeros(size)
    for (n, c), times in zip((divmod(int(kind), size + 1) for kind in kinds), groups, strict=True):
        total[:n] += times * np.array([1 - math.comb(n - c, k) / math.comb(n, k) for k in range(1, n + 1)])
        counted[:n] += times
    return _ratio(total, counted)


def best_of(rewards: np.ndarray) -> np.ndarray:
    """[G]: expected best reward of k = 1..G members drawn without replacement; mean and NaN as in `pass_at`."""
    size = rewards.shape[1]
    measured, ordered = np.isfinite(rewards).sum(axis=1), np.sort(rewards, axis=1)  # NaN sorts last
    total, counted = np.zeros(size), np.zeros(size)
    for n, groups in zip(*(found.tolist() for found in np.unique(measured, return_counts=True)), strict=True):
        summed = ordered[measured == n, :n].sum(axis=0)
        weights = [[math.comb(i, k - 1) / math.comb(n, k) for i in range(n)] for k in range(1, n + 1)]
        total[:n] += np.array(weights) @ summed
        counted[:n] += groups
    return _ratio(total, counted)


def _ratio(total: np.ndarray, counted: np.ndarray) -> np.ndarray:
    ratio = np.full(len(total), np.nan)
    np.divide(total, counted, out=ratio, where=counted > 0)
    return ratio


def split_levels(levels: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """[(label, groups as a mask)] in ascending difficulty; at most MAX_LEVELS of about equal size."""
    distinct = np.unique(levels)
    if len(distinct) <= MAX_LEVELS:
        return [(str(int(v)), levels == v) for v in distinct]
    edges = np.unique(np.quantile(levels, np.linspace(0, 1, MAX_LEVELS + 1), method="nearest"))
    found = []
    for low, high in zip([edges[0] - 1, *edges[1:-1]], edges[1:], strict=True):
        chosen = (levels > low) & (levels <= high)
        a, b = int(levels[chosen].min()), int(levels[chosen].max())
        found.append((str(a) if a == b else f"{a}–{b}", chosen))
    return found


def _level(data: Members, label: str, chosen: np.ndarray, dead: np.ndarray, high: np.ndarray) -> Level:
    r, exact = data.rewards[chosen], data.exact[chosen]
    by_group = np.nanmean(r, axis=1), np.nanmean(exact, axis=1)
    reward_error, accuracy_error = (
        float(np.std(v, ddof=1) / math.sqrt(len(v))) if len(v) > 1 else math.nan for v in by_group
    )
    return Level(
        label=label,
        groups=int(chosen.sum()),
        members=int(np.isfinite(r).sum()),
        mean_reward=float(np.nanmean(r)),
        reward_error=reward_error,
        accuracy=float(np.nanmean(exact)),
        accuracy_error=accuracy_error,
        pass_at_group=float(np.mean(np.nanmax(exact, axis=1))),
        alive=int((chosen & ~dead).sum()),
        dead_low=int((chosen & dead & ~high).sum()),
        dead_high=int((chosen & dead & high).sum()),
    )


def drift(name: str, values: np.ndarray, rewards: np.ndarray) -> Drift | None:
    """One statistic [groups, G] against rewards [groups, G]; None where it was not measured."""
    both = np.isfinite(values) & np.isfinite(rewards)
    if not both.any():
        return None
    x, y = values[both], rewards[both]
    pooled, cloud, mean = correlation(x, y), _cloud(x, y), float(x.mean())
    x, y = (_standardised(m, both)[both] for m in (values, rewards))
    varied = np.isfinite(x) & np.isfinite(y)
    x, y = x[varied], y[varied]
    return Drift(name, mean, correlation(x, y), pooled, cloud, _cloud(x, y))


def _cloud(x: np.ndarray, y: np.ndarray) -> Cloud | None:
    if not len(x):
        return None
    chosen = np.random.default_rng(0).choice(len(x), min(POINTS, len(x)), replace=False)
    return Cloud(np.stack([x[chosen], y[chosen]]), quantile_means(x, y))


def quantile_means(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[3, at most BINS]: mean x, mean y and its standard error in quantile bins of x [N].

    Equal values share a bin, so there may be fewer.
    """
    edges = np.unique(np.quantile(x, np.linspace(0, 1, BINS + 1)))
    place = np.searchsorted(edges[1:-1], x, side="right")
    n = np.bincount(place)
    mean_x, mean_y = (np.bincount(place, v) / np.maximum(n, 1) for v in (x, y))
    variance = np.bincount(place, (y - mean_y[place]) ** 2) / np.maximum(n, 1)
    return np.stack([mean_x, mean_y, np.sqrt(variance / np.maximum(n, 1))])[:, n > 0]


def _standardised(matrix: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Z-scores by row of what was measured; NaN elsewhere and in a row that does not vary."""
    out = np.full(matrix.shape, np.nan)
    for first in range(0, len(matrix), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        good, values = measured[some], np.where(measured[some], matrix[some], 0.0)
        n = np.maximum(good.sum(axis=1, keepdims=True), 1)
        centred = np.where(good, values - values.sum(axis=1, keepdims=True) / n, 0.0)
        std = np.sqrt((centred**2).sum(axis=1, keepdims=True) / n)
        top, low = np.where(good, values, -np.inf).max(axis=1), np.where(good, values, np.inf).min(axis=1)
        np.divide(centred, std, out=out[some], where=good & (top > low)[:, None])
    return out


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson; NaN pairs are left out; NaN if either does not vary."""
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])

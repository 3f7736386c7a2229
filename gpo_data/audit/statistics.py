"""The numbers of an audit: pure functions of matrices [groups, G] with NaN for a member without a reward.

    pass@k      = 1 - C(n-c, k) / C(n, k)                     n members of a group, c right; unbiased (Chen et al. 2021)
    best of k   = sum_i r_(i) C(i-1, k-1) / C(n, k)           expected best reward, r_(1) <= ... <= r_(n)
    margin      = max r - min r                               dead group: no spread (lake/advantage.py)
    drift       = correlation of a picture statistic with the reward, both standardised inside their group

The drift is the direction in which training on these groups would move the pictures; a pooled correlation mixes it
with prompts that are easy and pale for reasons of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpo_data.audit.members import Members
from gpo_data.lake.advantage import is_dead

MAX_LEVELS = 8  # more distinct difficulties than this are grouped into quantiles
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
class Drift:
    """One picture statistic against the reward."""

    name: str
    within: float  # inside groups; NaN where no group varies in both
    pooled: float
    cloud: np.ndarray  # [2, members]: statistic, reward
    inside_cloud: np.ndarray  # [2, members of groups that vary in both]: the same, standardised inside groups


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
        pass_at=np.array([pass_at_k(exact, int(k)) for k in ks]),
        best_of=np.array([best_of_k(r, int(k)) for k in ks]),
        mean=mean,
        std=std,
        margin=margin,
        dead_low=dead & ~high,
        dead_high=dead & high,
        levels=[_level(data, label, chosen, dead, high) for label, chosen in split_levels(data.levels)],
        drifts=[d for name, values in data.image_statistics.items() if (d := drift(name, values, r)) is not None],
    )


def pass_at_k(exact: np.ndarray, k: int) -> float:
    """Mean over the groups with at least k measured members; NaN if there is none."""
    n = np.isfinite(exact).sum(axis=1).tolist()
    right = np.nansum(exact, axis=1).astype(int).tolist()
    values = [1 - math.comb(a - c, k) / math.comb(a, k) for a, c in zip(n, right, strict=True) if a >= k]
    return float(np.mean(values)) if values else math.nan


def best_of_k(rewards: np.ndarray, k: int) -> float:
    """Expected best reward of k members drawn without replacement, mean over groups; NaN as in `pass_at_k`."""
    values, weights = [], {}
    for row in np.sort(rewards, axis=1):  # NaN sorts last
        row = row[np.isfinite(row)]
        n = len(row)
        if n < k:
            continue
        if n not in weights:
            weights[n] = np.array([math.comb(i, k - 1) / math.comb(n, k) for i in range(n)])
        values.append(float(row @ weights[n]))
    return float(np.mean(values)) if values else math.nan


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
    cloud = np.stack([values[both], rewards[both]])
    inside = np.stack([_standardised(np.where(both, m, np.nan))[both] for m in (values, rewards)])
    inside = inside[:, np.isfinite(inside).all(axis=0)]
    return Drift(name, correlation(*inside), correlation(*cloud), cloud, inside)


def quantile_means(x: np.ndarray, y: np.ndarray, bins: int = 8) -> np.ndarray:
    """[3, at most `bins`]: mean x, mean y and its standard error in quantile bins of x [N].

    Equal values share a bin, so there may be fewer.
    """
    edges = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, x, side="right"), 1, max(len(edges) - 1, 1))
    parts = [np.flatnonzero(place == i) for i in np.unique(place)]
    return np.array([(x[p].mean(), y[p].mean(), y[p].std() / math.sqrt(len(p))) for p in parts]).T


def _standardised(matrix: np.ndarray) -> np.ndarray:
    """Z-scores by row; NaN in a row that does not vary."""
    out = np.full(matrix.shape, np.nan)
    for i, row in enumerate(matrix):
        good = row[np.isfinite(row)]
        if len(good) and good.max() > good.min():
            out[i] = (row - good.mean()) / good.std()
    return out


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson; NaN pairs are left out; NaN if either does not vary."""
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])

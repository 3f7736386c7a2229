"""What came of a row with all its seeds, and which rows are on a front.

Intervals are over targets, all seeds' pictures of a target together (evaluation/interval.py); what seeds differ by
stands beside it. A line is on a front when no other is at least as good in both and better in one. Where something only
watches, its gain stands beside that of the reward: a reward that is gamed rises alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpo_train.evaluation.interval import Interval, interval_of_sums
from gpo_train.evaluation.result import Comparison, Sums
from gpo_train.sweep.plan import Plan
from gpo_train.sweep.row import Curve, Result


@dataclass(frozen=True)
class Gain:
    """Policy less base: the mean, and its 95% interval over targets."""

    mean: float
    ci95: Interval


@dataclass(frozen=True)
class Line:
    """Fractions, not percents; means over the seeds that are there.

    Args:
        others: gain of `reward`, and of what watchers see, by name.
        points: gain after so many steps; of those that every seed has.
        memory: bytes.
    """

    label: str
    seeds: int
    asked: int
    exact: float
    gain: Gain
    by_seed: list[float]
    diversity: float
    colour: float | None
    failed: int
    pictures: float
    train_seconds: float
    memory: float | None
    curves: list[Curve]
    others: dict[str, Gain]
    points: dict[int, Gain]


def lines_of(plan: Plan, found: dict[str, Result]) -> list[Line]:
    """Those with at least one seed, the best first."""
    made = []
    for label in dict.fromkeys(row.label for row in plan.rows):
        rows = [row for row in plan.rows if row.label == label]
        results = [found[row.name] for row in rows if row.name in found]
        if results:
            made.append(_line(label, results, len(rows)))
    return sorted(made, key=lambda line: -line.gain.mean)


def _line(label: str, results: list[Result], asked: int) -> Line:
    found = [one.evaluation for one in results]
    colours = [one.policy.statistics["color_exact"] for one in found if "color_exact" in one.policy.statistics]

    memory = [one.peak_memory for one in results if one.peak_memory is not None]
    steps = set.intersection(*({*one.points} for one in results))

    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    return Line(
        label,
        len(results),
        asked,
        mean([one.policy.exact for one in found]),
        gain(found),
        [one.difference.exact for one in found],
        mean([one.diversity_ratio for one in found]),
        mean(colours) if colours else None,
        sum(one.policy.failed for one in found),
        mean([float(one.pictures) for one in results]),
        mean([one.train_seconds for one in results]),
        float(max(memory)) if memory else None,
        [one.curve for one in results],
        {name: gain(found, name) for name in _others(found)},
        {step: gain([one.points[str(step)] for one in results]) for step in sorted(map(int, steps))},
    )


def gain(found: Sequence[Comparison], name: str | None = None) -> Gain:
    """Of several seeds together; of `exact`, or of another thing by its name."""
    totals: dict[str, tuple[float, float]] = {}
    for one in found:
        for key, target in one.by_target.items():
            values: Sums = target if name is None else target.others[name]
            n, total = totals.get(key, (0.0, 0.0))
            totals[key] = n + values.n, total + values.sum
    sizes, sums = np.array([one for one in totals.values() if one[0]] or [(0.0, 0.0)]).T
    low, high = interval_of_sums(sums, sizes, (-1.0, 1.0) if name is None else (-np.inf, np.inf))
    return Gain(float(sums.sum() / sizes.sum()) if sizes.any() else float("nan"), (low, high))


def _others(found: Sequence[Comparison]) -> list[str]:
    """`reward` where something watches, and what does: names that every target of every seed has."""
    names = [{*target.others} for one in found for target in one.by_target.values()]
    common = set.intersection(*names) if names else set()
    return sorted(common) if common - {"reward"} else []


def front(points: list[tuple[float, float]]) -> list[bool]:
    """Of each point whether it is on the Pareto front; more is better."""
    return [
        not any(a >= x and b >= y and (a > x or b > y) for a, b in points) if np.isfinite([x, y]).all() else False
        for x, y in points
    ]

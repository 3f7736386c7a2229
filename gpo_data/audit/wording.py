"""The numbers as sentences, for people who would rather read than decode a chart.

What always holds: a sentence states only what was measured, and a judgement names its threshold here.
"""

from __future__ import annotations

import math

import numpy as np

from gpo_data.audit.members import Members
from gpo_data.audit.statistics import Drift, Figures

STRONG, SLIGHT = 0.3, 0.1  # of a correlation inside groups
MORE = {
    "entropy": ("more varied in tone", "flatter in tone"),
    "edge_density": ("busier", "smoother"),
    "dark_fraction": ("darker", "lighter"),
}


def percent(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{100 * value:.1f}%"


def number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3f}"


def signed(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


def count(n: int, thing: str) -> str:
    """`1 group`, `12,000 groups`"""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def opening(data: Members, figures: Figures) -> str:
    groups, alive = data.shape[0], int((~figures.dead).sum())
    if not alive:
        return (
            f"None of the {count(groups, 'group')} varies under this reward, so there is nothing to learn from: every "
            f"advantage is zero. Try a more lenient reward, other prompts, or a model that is sometimes right."
        )
    last = figures.last_k
    found = percent(float(figures.pass_at[last - 1]))
    return (
        f"{alive:,} of {count(groups, 'group')} ({percent(alive / groups)}) can teach: their members differ in reward. "
        f"A single picture is right {percent(figures.accuracy)} of the time; "
        f"with {last} tries at a prompt at least one is right for {found} of the prompts. "
        f"That gap is what group preference optimisation can turn into skill."
    )


def failures(data: Members) -> str:
    failed = sum(n for _, n in data.failed)
    if not failed:
        return "No member failed."
    listed = "; ".join(f"{reason} ({n:,})" for reason, n in data.failed[:5])
    are = "is" if failed == 1 else "are"
    return f"{count(failed, 'member')} of {data.drawn:,} failed and {are} left out: {listed}."


def rewards(data: Members, figures: Figures) -> str:
    r, exact = (m[np.isfinite(data.rewards)] for m in (data.rewards, data.exact))
    q25, q50, q75 = np.quantile(r, [0.25, 0.5, 0.75])
    wrong = r[exact == 0]
    text = f"The mean reward is {number(figures.mean_reward)}; half of the members lie between {q25:.2f} and {q75:.2f}"
    text += f" (median {q50:.2f})."
    if len(wrong) and len(wrong) < len(r):
        text += f" Right members earn {r[exact == 1].mean():.2f} on average, the others {wrong.mean():.2f}."
    if len(wrong) and (paid := float((wrong >= r.max()).mean())) > 0 and r.max() > r.min():
        text += f" {percent(paid)} of the members that are not right earn the highest reward all the same."
    return text


def spread(figures: Figures) -> str:
    alive = figures.std[~figures.dead]
    text = f"The median standard deviation inside a group is {np.median(figures.std):.3f}"
    if len(alive):
        text += f", and {np.median(alive):.3f} among the groups that are alive"
    return f"{text}. A wide spread means a clear preference; a spread of zero means a dead group, which training skips."


def best_of(figures: Figures) -> str:
    known = figures.pass_at[np.isfinite(figures.pass_at)]
    half = int(np.argmax(known >= (known[0] + known[-1]) / 2)) + 1
    if known[-1] == known[0]:
        return f"More tries change nothing: pass@1 and pass@{len(known)} are both {percent(float(known[0]))}."
    return (
        f"pass@1 is {percent(float(known[0]))} and pass@{len(known)} is {percent(float(known[-1]))}; half of the way "
        f"is reached with {count(half, 'member')}. Estimated without bias, for each k from all groups with at least k "
        f"measured members."
    )


def dead(data: Members, figures: Figures) -> str:
    low, high, groups = int(figures.dead_low.sum()), int(figures.dead_high.sum()), data.shape[0]
    if not low + high:
        return "No group is dead: in every group some member beats another."
    text = f"{low + high:,} of {count(groups, 'group')} {'is' if low + high == 1 else 'are'} dead: "
    text += f"{low:,} low (most members wrong, all paid alike) and "
    text += f"{high:,} high (most members right, nothing left to learn)."
    worst = max(figures.levels, key=lambda level: (level.dead_low + level.dead_high) / level.groups)
    share = (worst.dead_low + worst.dead_high) / worst.groups
    return f"{text} The share is largest at {data.level_name} {worst.label}: {percent(share)} of the groups there."


def margins(figures: Figures) -> str:
    alive = figures.margin[~figures.dead]
    if not len(alive):
        return "Every margin is zero."
    return (
        f"Among groups that are alive the best member beats the worst by {np.median(alive):.2f} in the median "
        f"(smallest {alive.min():.2f}, largest {alive.max():.2f})."
    )


def difficulty(data: Members, figures: Figures) -> str:
    first, last = figures.levels[0], figures.levels[-1]
    if first is last:
        return f"All prompts have {data.level_name} {first.label}: mean reward {number(first.mean_reward)}."
    return (
        f"From {data.level_name} {first.label} to {last.label} the mean reward goes from {number(first.mean_reward)} "
        f"to {number(last.mean_reward)}, and the share of right members from {percent(first.accuracy)} "
        f"to {percent(last.accuracy)}."
    )


def drift(item: Drift) -> str:
    r = item.within
    if math.isnan(r):
        return "No group varies in both, so nothing can be said."
    tail = f"(correlation {signed(r)} inside groups, {signed(item.pooled)} over all members)"
    if abs(r) < SLIGHT:
        return f"No pull in one direction {tail}."
    side = MORE.get(item.name, (f"higher in {item.name}", f"lower in {item.name}"))[r < 0]
    if abs(r) < STRONG:
        return f"A slight pull: better members are a little {side} {tail}."
    return (
        f"A strong pull: better members of a group are {side} {tail}. "
        f"Look at the best pictures below: is that what being right looks like, or what fools the evaluator?"
    )

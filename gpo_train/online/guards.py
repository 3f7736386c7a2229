"""When to stop an online run: rules over the summaries of its iterations.

plateau     the best mean reward is `stop_plateau` iterations old
diversity   diversity inside groups < stop_diversity x the first iteration's
drift       |statistic / first iteration's - 1| > stop_drift, for entropy, edge density, dark fraction
distance    an epoch's mean of s over all members > stop_distance: policy and reference are far apart
"""

from __future__ import annotations

from gpo_data.audit.members import IMAGE_STATISTICS
from gpo_data.recipe import Online
from gpo_train.online.iterations import Summary

SMALL = 0.01  # a statistic near zero, such as the dark fraction of bright pictures, has no meaningful ratio


def reason_to_stop(history: list[Summary], online: Online) -> str | None:
    """Why the run should stop after the last iteration of `history`, or None."""
    first, last = history[0], history[-1]
    rewards = [one.reward for one in history]
    best = max(range(len(rewards)), key=lambda i: rewards[i])
    if online.stop_plateau is not None and len(history) - 1 - best >= online.stop_plateau:
        return (
            f"online.stop_plateau: {online.stop_plateau}: the best mean reward, {rewards[best]:.3f}, is of "
            f"iteration {best}; the last one has {rewards[-1]:.3f}"
        )
    if online.stop_diversity is not None:
        share = last.diversity / first.diversity
        if share < online.stop_diversity:
            return (
                f"online.stop_diversity: {online.stop_diversity}: the diversity inside groups is "
                f"{last.diversity:.3f}, {share:.2f} of the first iteration's"
            )
    if online.stop_drift is not None:
        for name in IMAGE_STATISTICS:
            before, now = getattr(first, name), getattr(last, name)
            if before is not None and before > SMALL and abs(now / before - 1) > online.stop_drift:
                return f"online.stop_drift: {online.stop_drift}: {name} went from {before:.3f} to {now:.3f}"
    distance = max((one.distance or 0.0 for one in history), default=0.0)
    if online.stop_distance is not None and distance > online.stop_distance:
        return (
            f"online.stop_distance: {online.stop_distance}: an epoch's mean error of the policy is "
            f"{distance:.4f} above the reference's"
        )
    return None

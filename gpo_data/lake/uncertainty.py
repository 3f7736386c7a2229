"""GARDO's gate: of the members that the reward ranks high and other judges rank low, some are not to be trusted.

    w_i = (#{j: r_j < r_i} + #{j <> i: r_j = r_i} / 2) / (N - 1)      win rate among the N members of a dataset
    U_i = w_i of the reward - mean of w_i of the judges               above 0: the reward says more than they do
    gated: U_i > 0, and U_i at or above the quantile 1 - share of those U that are above 0

Only gated members are penalised for their distance to the reference (`train.kl`). Rewards of one size share their wins,
since a reward of 0 and 1 ranks whole halves of a dataset alike. Win rates are counted, so that no judge's unit matters
and equal ones differ by 0 and not by rounding. Source: GARDO, arXiv 2512.24138.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa

from gpo_data.errors import UsageError
from gpo_data.lake import locked
from gpo_data.lake.views import is_number


def uncertainty(reward: np.ndarray, judges: Sequence[np.ndarray]) -> np.ndarray:
    """U [N], from -1 to 1.

    Args:
        reward: [N] finite.
        judges: one or more, [N] finite each.
    """
    apart = len(judges) * _wins(reward) - np.sum([_wins(judge) for judge in judges], axis=0)
    return np.asarray(apart / (2 * len(judges) * max(len(reward) - 1, 1)))


def gated(uncertain: np.ndarray, share: float) -> np.ndarray:
    """Mask [N] of the `share` of the uncertain members, U > 0, that are most so; those that are equally so together."""
    positive = uncertain[uncertain > 0]
    if not len(positive):
        return np.zeros(len(uncertain), bool)
    return np.asarray((uncertain > 0) & (uncertain >= np.quantile(positive, 1 - share)))


def as_numbers(own: duckdb.DuckDBPyConnection, judges: Sequence[str]) -> list[str]:
    """SQL of each expression as a number. Raises UsageError where it is none."""
    for judge in judges:
        kind, found = locked.type_of(own, "train.kl_judges", judge)
        if not is_number(kind):
            raise UsageError(
                f"train.kl_judges: {judge!r}: expected SQL for a number, such as a column of another evaluator, found "
                f"{found}"
            )
    return [f"CAST(({judge}\n) AS DOUBLE)" for judge in judges]


def expect_finite(column: pa.Array, judge: str) -> np.ndarray:
    """[N]. Raises UsageError where a member has no number."""
    values = np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
    if missing := int((~np.isfinite(values)).sum()):
        raise UsageError(
            f"train.kl_judges: {judge!r}: expected a finite number of every member, found none of {missing} of "
            f"{len(values)}; `gpo-data measure` adds what an evaluator sees"
        )
    return values


def _wins(values: np.ndarray) -> np.ndarray:
    """[N] twice the number of members that each beats; a tie is one half."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, "left")
    wins: np.ndarray = below + np.searchsorted(ordered, values, "right") - 1
    return wins

"""GARDO's diversity bonus: of the members above a group's mean, those unlike the others count for more.

    d_i  = min over j != i of 1 - cos(f_i, f_j)              f: features of the picture, j: the other members
    A_i <- A_i d_i / (mean d)     where r_i >= mean r;       A_i stays where it is below

The mean is over all members of the group. What is below the mean is not touched, so that no bad picture is driven away
for being unlike the others. Where all are alike, mean d = 0, there is nothing to prefer and A stays. Advantages then no
longer add up to 0. Source: GARDO (arXiv 2512.24138), public code at commit 1cc77fb, whose A is r - mean r.
"""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpo_data.errors import UsageError, few
from gpo_data.lake import locked
from gpo_data.lake.views import is_number


def bonus(group: np.ndarray, advantages: np.ndarray, features: np.ndarray) -> np.ndarray:
    """[N]: what each advantage is multiplied with.

    Args:
        group: [N] each member's group number.
        advantages: [N]; their sign says who is above the mean.
        features: [N, D] finite, no row of zeros.
    """
    factor = np.ones(len(group))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(members) < 2:
            continue
        apart = 1 - np.clip(unit[members] @ unit[members].T, -1, 1)
        np.fill_diagonal(apart, np.inf)
        nearest = apart.min(axis=1)
        if nearest.mean() > 0:
            factor[members] = np.where(advantages[members] < 0, 1.0, nearest / nearest.mean())
    return factor


def as_features(own: duckdb.DuckDBPyConnection, features: str) -> str:
    """SQL of the expression as a list of numbers. Raises UsageError where it is none."""
    kind, found = locked.type_of(own, "train.diversity_bonus", features)
    if not kind.endswith("]") or not is_number(kind.split("[")[0]):
        raise UsageError(
            f"train.diversity_bonus: {features!r}: expected SQL for a list of numbers, such as a column of an "
            f"evaluator, found {found}"
        )
    return f"CAST(({features}\n) AS DOUBLE[])"


def feature_rows(column: pa.Array, features: str) -> np.ndarray:
    """[N, D]. Raises UsageError where a member has none, or of another length, or they are 0."""
    lengths = sorted(pc.unique(pc.fill_null(pc.list_value_length(column), 0)).to_pylist())
    if len(lengths) > 1 or 0 in lengths:
        raise UsageError(
            f"train.diversity_bonus: {features!r}: expected as many numbers of every member, found "
            f"{few([str(length) for length in lengths])}"
        )
    found: np.ndarray = pc.list_flatten(column).to_numpy(zero_copy_only=False).reshape(len(column), *lengths or [0])
    if not (np.isfinite(found).all() and np.linalg.norm(found, axis=1).all()):
        raise UsageError(f"train.diversity_bonus: {features!r}: expected finite numbers, not all 0, of every member")
    return found

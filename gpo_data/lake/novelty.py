"""GARDO's diversity bonus: of the members above a group's mean, those unlike the others count for more.

    d_i  = min over j != i of 1 - cos(f_i, f_j)              f: features of the picture, j: the other members
    A_i <- A_i d_i / (mean d)     where r_i >= mean r;       A_i stays where it is below

The mean is over all members of the group. What is below the mean is not touched, so that no bad picture is driven away
for being unlike the others. Where all are alike, mean d = 0, there is nothing to prefer and A stays. Advantages then no
longer add up to 0. Source: GARDO (arXiv 2512.24138), public code at commit 1cc77fb, whose A is r - mean r.
"""

from __future__ import annotations

import numpy as np


def bonus(group: np.ndarray, advantages: np.ndarray, features: np.ndarray) -> np.ndarray:
    """[N]: what each advantage is multiplied with.

    Args:
        group: [N] each member's group number.
        advantages: [N]; their sign says who is above the mean.
        features: [N, D] finite, no row of zeros.
    """
    factor = np.ones(len(group))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for number in np.unique(group):
        members = np.flatnonzero(group == number)
        if len(members) < 2:
            continue
        apart = 1 - np.clip(unit[members] @ unit[members].T, -1, 1)
        np.fill_diagonal(apart, np.inf)
        nearest = apart.min(axis=1)
        if nearest.mean() > 0:
            factor[members] = np.where(advantages[members] < 0, 1.0, nearest / nearest.mean())
    return factor

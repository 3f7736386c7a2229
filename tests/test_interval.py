"""Intervals against simulation: what is claimed to cover 95% does, where pictures of one target go together."""

from __future__ import annotations

import numpy as np
import pytest

from gpo_train.evaluation.interval import interval, open_interval, share_interval, student_t

REPEATS = 1000
# (share right of the base, gain in logits, spread of targets in logits)
POLICIES = [(0.05, 0.5, 0.3), (0.41, 1.0, 1.5), (0.8, 1.0, 1.5), (0.95, 0.0, 0.3)]


def pairs(rng: np.random.Generator, of: np.ndarray, policy: tuple[float, float, float]) -> np.ndarray:
    """[n] policy - base of pictures right or wrong; a target has an ease of its own, and a gain of its own."""
    share, gain, spread = policy
    ease = rng.normal(np.log(share / (1 - share)), spread, of.max() + 1)
    gains = rng.normal(gain, spread / 2, of.max() + 1)
    right = [1 / (1 + np.exp(-logit[of])) > rng.random(len(of)) for logit in (ease, ease + gains)]
    return right[1].astype(float) - right[0]


def truth(policy: tuple[float, float, float]) -> float:
    return float(pairs(np.random.default_rng(1), np.arange(1_000_000), policy).mean())


def coverage(policy: tuple[float, float, float], targets: int, uneven: bool, by_prompt: bool = False) -> float:
    """How often the interval holds the mean over all targets there could be; 256 prompts of 2 pictures."""
    rng, true, hits = np.random.default_rng(targets), truth(policy), 0
    prompts = np.repeat(np.arange(256), 2)
    for _ in range(REPEATS):
        of = (rng.integers(0, targets, 256) if uneven else np.arange(256) % targets)[prompts]
        low, high = interval(pairs(rng, of, policy), prompts if by_prompt else of)
        hits += low <= true <= high
    return hits / REPEATS


@pytest.mark.parametrize("targets", [20, 26, 48, 256])
def test_ninety_five_percent_are_covered(targets: int) -> None:
    found = [coverage(policy, targets, uneven=i % 2 == 0 and targets < 256) for i, policy in enumerate(POLICIES)]
    assert all(0.93 <= one <= 0.97 for one in found), found


def test_prompts_that_share_words_are_not_independent() -> None:
    assert coverage(POLICIES[1], 20, uneven=True, by_prompt=True) < 0.85


def test_the_interval_is_the_textbooks() -> None:
    table = {1: 12.7062, 4: 2.7764, 16: 2.1199, 25: 2.0595, 255: 1.9693}
    assert {f: round(student_t(0.975, f), 4) for f in table} == table
    values = np.array([0.0, 1.0, 0.0, 0.0, -1.0])
    reach = 2.7764 * values.std(ddof=1) / 5**0.5  # each value a cluster: the interval of a plain mean
    assert interval(values, np.arange(5)) == pytest.approx([-reach, reach], abs=1e-4)
    assert interval(values, np.zeros(5)) == (-1.0, 1.0)  # of one target nothing is known


@pytest.mark.parametrize(("targets", "reach"), [(4, 0.6024), (26, 0.1323), (256, 0.0143)])
def test_targets_that_are_all_alike_are_not_certain(targets: int, reach: float) -> None:
    """Clopper and Pearson's upper end of none of so many."""
    of = np.repeat(np.arange(targets), 2)
    assert interval(0.0 * of, of) == pytest.approx((-reach, reach), abs=1e-4)
    assert share_interval(0.0 * of, of) == pytest.approx((0, reach), abs=1e-4)
    assert share_interval(0.0 * of + 1, of) == pytest.approx((1 - reach, 1), abs=1e-4)
    assert open_interval(0.0 * of + 3, of) == (3, 3)

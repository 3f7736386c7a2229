"""The objective against formulas worked out with numpy in float64, finite differences and identities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from gpo_data.errors import UsageError
from gpo_data.lake.advantage import Scale, extremes, is_dead, standardise, together
from gpo_data.recipe import Train
from gpo_train.gradcache import coefficients
from gpo_train.objectives.group import group_loss, penalty
from gpo_train.objectives.pairs import pairs, weights
from gpo_train.rows import Compared
from tests.parts.pages import table

RNG = np.random.default_rng(0)
R = RNG.choice([0.0, 0.25, 0.5, 1.0], 12)
A = (R - R.mean()) / R.std()
S = RNG.normal(0, 1e-3, 12)
BETA = 700.0


def numpy_loss(s: np.ndarray, r: np.ndarray, weighting: str, kind: str, hold: float = 0.0) -> float:
    if hold:
        together = (s.sum() / len(s) * (1 if kind == "linear" else BETA)) ** 2
        return numpy_loss(s, r, weighting, kind) + 0.5 * hold * float(together)

    def link(z: float) -> float:
        return z if kind == "linear" else -np.log(1 / (1 + np.exp(BETA * z)))

    if weighting in ("zscore", "sign"):
        w = (r - r.mean()) / r.std() if weighting == "zscore" else np.sign(r - r.mean())
        return link(float((w * s).sum() / len(r)))
    chosen = [(i, j) for i, j in itertools.permutations(range(len(r)), 2) if r[i] > r[j]]
    if weighting == "max":
        chosen = [(int(np.argmax(r)), int(np.argmin(r)))]
    if weighting == "min":
        chosen = [min(chosen, key=lambda p: (r[p[0]] - r[p[1]], p))]
    return float(np.mean([link((s[i] - s[j]) / 2) for i, j in chosen]))


@pytest.mark.parametrize("hold", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["linear", "logsigmoid"])
@pytest.mark.parametrize("weighting", ["zscore", "sign", "all", "max", "min"])
def test_loss_and_gradient(weighting: str, kind: str, hold: float) -> None:
    s, a = torch.tensor(S), torch.tensor(A)
    loss = group_loss(s.requires_grad_(), a, weighting, kind, BETA, hold)
    (gradient,) = torch.autograd.grad(loss, s)
    assert loss.item() == pytest.approx(numpy_loss(S, R, weighting, kind, hold), rel=1e-10)
    for i in range(len(S)):
        step = np.zeros_like(S)
        step[i] = 1e-7
        up, down = (numpy_loss(S + sign * step, R, weighting, kind, hold) for sign in (1, -1))
        assert gradient[i].item() == pytest.approx((up - down) / 2e-7, rel=1e-5, abs=1e-9)


def test_the_penalty_has_the_units_of_the_loss() -> None:
    distances = torch.tensor(S**2)
    assert penalty(distances, 0.5, BETA).item() == pytest.approx(0.5 * BETA * (S**2).mean(), rel=1e-10)
    assert penalty(distances, 0.5).item() == pytest.approx(0.5 * (S**2).mean(), rel=1e-10)


def test_pairs_and_group_are_one_identity() -> None:
    left = sum((R[i] - R[j]) * (S[i] - S[j]) for i, j in itertools.combinations(range(len(R)), 2))
    assert left == pytest.approx(len(R) * ((R - R.mean()) * S).sum(), rel=1e-10)
    z = group_loss(torch.tensor(S), torch.tensor(A), "zscore", "linear").item()
    assert left == pytest.approx(z * len(R) ** 2 * R.std(), rel=1e-10)


def test_a_split_group_has_the_whole_groups_gradient() -> None:
    torch.manual_seed(0)
    x, y, theta = torch.randn(12, 5).double(), torch.randn(12).double(), torch.randn(5).double().requires_grad_()
    a, reference = torch.tensor(A), torch.rand(12).double()

    def errors(part: slice) -> torch.Tensor:
        return (x[part] @ theta - y[part]) ** 2 - reference[part]

    group_loss(errors(slice(None)), a, beta=3.0).backward()
    whole, theta.grad = theta.grad.clone(), None
    with torch.no_grad():
        s = errors(slice(None))
    _, gradient, _ = coefficients(Compared(s, s), lambda one: group_loss(one.s, a, beta=3.0))
    for start in range(0, 12, 5):
        part = slice(start, start + 5)
        (gradient[part] * errors(part)).sum().backward()
    torch.testing.assert_close(theta.grad, whole, rtol=1e-12, atol=1e-12)


def test_advantages_are_standardised_once_and_rounding_is_no_spread() -> None:
    rewards = np.array([*R, 0.3, 0.3, 0.1 + 0.2, *[0.0, 1.0, 1.0]])
    group = np.array([0] * 12 + [1] * 3 + [2] * 3)
    advantages, alive = standardise(group, rewards, 3)
    assert alive.tolist() == [True, False, True]
    np.testing.assert_allclose(advantages[:12], A, rtol=1e-12)
    assert not advantages[12:15].any() and advantages[15:].std() == pytest.approx(1)
    assert is_dead(0.3, 0.1 + 0.2) and is_dead(np.nan, np.nan) and is_dead(0, 0) and is_dead(-1e300, -1e300)
    assert not is_dead(0.3, 0.3 + 1e-6) and not is_dead(0, 1e-12)
    # Inside a living group too: members of one reward are no pair, and the mean is no side.
    living = torch.tensor(standardise(np.zeros(4, int), np.array([0.1 + 0.2, 0.3, 0.9, 0.6]), 1)[0])
    better, worse = pairs(living, "all")
    assert {(0, 1), (1, 0)}.isdisjoint(zip(better.tolist(), worse.tolist(), strict=True)) and len(better) == 5
    middle = torch.tensor(standardise(np.zeros(3, int), np.array([0.1, 0.2, 0.3]), 1)[0])
    assert weights(middle, "sign").tolist() == [-1, 0, 1]
    with pytest.raises(ValueError, match="all 4 members are equal"):
        pairs(torch.zeros(4), "all")


def test_advantages_by_another_std_are_those_of_flow_grpo() -> None:
    """The numbers came out of its stat_tracking.py (yifan123/flow_grpo ac4c86e), which adds 1e-4 to every std."""
    rewards = np.array([0.1, 0.9, 0.5, 0.5, 0.30001, 0.3, 0.3, 0.3, 2.0, 1.0, 0.0, 1.0])
    group = np.repeat([0, 1, 2], 4)
    by_group = [-1.4137137390873122, 1.4137137390873122, 0, 0, 0.07188719322303756, *[-0.023962397741189877] * 3]
    by_group += [1.4140135906533668, 0, -1.4140135906533668, 0]
    of_all = [-0.7557867905400837, 0.7557867905400837, 0, 0, 1.4171002322614518e-05, *[-4.723667440906468e-06] * 3]
    of_all += [1.889466976350209, 0, -1.889466976350209, 0]
    for scale, expected in ((Scale("group", 1e-4), by_group), (Scale("global", 1e-4), of_all)):
        np.testing.assert_allclose(standardise(group, rewards, 3, scale)[0], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(standardise(group, rewards, 3, Scale("none"))[0][:4], [-0.4, 0.4, 0, 0], atol=1e-15)
    assert np.abs(standardise(group, rewards, 3, Scale(clip=1.2))[0]).max() == 1.2
    near_dead = standardise(np.zeros(4, int), np.array([0.3, 0.3, 0.30001, 0.30001]), 1)[0]
    assert np.abs(near_dead) == pytest.approx(np.ones(4))  # what an epsilon is for


def test_several_rewards_count_by_their_weights_and_not_by_their_units() -> None:
    group, other = np.zeros(12, int), RNG.permutation(R) * 1000 + 5
    values = together(group, [R, other], [2.0, 1.0], 1)
    b = (other - other.mean()) / other.std()
    np.testing.assert_allclose(values, 2 * A + b, rtol=1e-9)
    found, _ = standardise(group, values, 1)
    np.testing.assert_allclose(found, (2 * A + b) / (2 * A + b).std(), rtol=1e-9)
    same = together(group, [R, np.full(12, 0.3)], [2.0, 1.0], 1)  # one that is dead in the group says nothing there
    np.testing.assert_allclose(standardise(group, same, 1)[0], A, rtol=1e-9)


def test_rewards_that_contradict_each_other_teach_nothing() -> None:
    """A and -A cancel but for rounding, which would be standardised to advantages of 1."""
    for size in range(3, 33):
        for right in range(1, size):
            group, one = np.zeros(size, int), (np.arange(size) < right).astype(float)
            for rewards, shares in (([one, 1 - one], [1.0, 1.0]), ([one, one, 1 - one], [0.1, 0.2, 0.3])):
                advantages, alive = standardise(group, together(group, rewards, shares, 1), 1)
                assert not alive[0] and not advantages.any()


def test_tiny_rewards_keep_their_advantages() -> None:
    for size in (1e-150, 1e-170, 1e-300):
        group, rewards = np.array([0] * 12 + [1] * 12), np.concatenate([R * size, R])
        np.testing.assert_allclose(standardise(group, rewards, 2)[0], np.concatenate([A, A]), rtol=1e-9)
    assert np.abs(standardise(np.zeros(12, int), R * 1e-170, 1, Scale(epsilon=1e-4))[0]).max() < 1e-150


def test_huge_rewards_keep_their_advantages() -> None:
    for size in (1e150, 1e300, 1.7e308):
        for std in ("group", "global"):
            found, alive = standardise(np.array([0] * 12 + [1] * 12), np.concatenate([R, R]) * size, 2, Scale(std))
            assert alive.all()
            np.testing.assert_allclose(found, np.concatenate([A, A]), rtol=1e-12)
    plain = standardise(np.zeros(12, int), R * 1e300, 1, Scale("none"))[0]
    np.testing.assert_allclose(plain, (R - R.mean()) * 1e300, rtol=1e-12)


def test_a_group_can_be_trained_on_its_best_and_worst_alone() -> None:
    group, a = np.array([0] * 6 + [1] * 2 + [2] * 3), np.array([0.1, -2, 3, 0.2, -0.5, 3.0, 1, -1, 0.2, 0.1, -0.3])
    assert np.flatnonzero(extremes(group, a, 4)).tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert np.flatnonzero(extremes(group, a, 3)).tolist() == [1, 2, 5, 6, 7, 8, 9, 10]
    assert np.flatnonzero(extremes(group, a, 2)).tolist() == [1, 2, 6, 7, 8, 10]


def sigmoid(x: np.ndarray | float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x)))


def of_pair(s: np.ndarray, a: np.ndarray, beta: float) -> np.ndarray:
    """d/ds of -log sigmoid(-beta (s_w - s_l)), by hand."""
    better, worse = np.argmax(a), np.argmin(a)
    sides = (np.arange(len(s)) == better).astype(float) - (np.arange(len(s)) == worse)
    return beta * sigmoid(beta * (s[better] - s[worse])) * sides


# By the loss as the page writes it: d loss / ds of one group.
THEIRS = {
    "-log sigmoid(-beta (s_w - s_l))": of_pair,
    "-log sigmoid(-beta/2 (s_w - s_l))": lambda s, a, beta: of_pair(s, a, beta / 2),
    "mean_i gate A_i err_i": lambda s, a, beta: sigmoid(beta / len(s) * (a * s).sum()) * a / len(s),
}


@pytest.mark.parametrize("row", table("coming-from.md", "code", "its setting"), ids=lambda row: f"{row[0]} {row[1]}")
def test_the_beta_of_another_trainer_is_what_the_page_says(row: list[str]) -> None:
    """Gradients for the predictions, of squared errors that are means over elements, averaged over groups."""
    code, setting, loss, weighting, beta, times = row
    groups, size = 3, 2 if "groups of two" in code else 6
    rng = np.random.default_rng(1)
    y, noise, step = rng.normal(size=(3, groups, size, 4, 3, 3))
    reference, f = y + 0.3 * noise, y + 0.3 * noise + 0.02 * step
    s = ((f - y) ** 2).mean((2, 3, 4)) - ((reference - y) ** 2).mean((2, 3, 4))
    rewards = rng.normal(size=(groups, size))
    a = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, keepdims=True)
    by_s = np.stack([THEIRS[loss](s[g], a[g], float(setting.split()[-1])) for g in range(groups)]) / groups
    theirs = by_s[..., None, None, None] * 2 * (f - y) / (4 * 3 * 3)

    asked = torch.tensor(f, requires_grad=True)
    ours = (asked - torch.tensor(y)).pow(2).mean((2, 3, 4)) - torch.tensor(((reference - y) ** 2).mean((2, 3, 4)))
    torch.stack(
        [group_loss(ours[g], torch.tensor(a[g]), weighting, "logsigmoid", float(beta)) for g in range(groups)]
    ).mean().backward()
    assert asked.grad is not None
    np.testing.assert_allclose(asked.grad.numpy(), float(times) * theirs, rtol=1e-9, atol=1e-12)


def test_training_data_half_never_imports_the_training_half() -> None:
    from pathlib import Path

    for path in (Path(__file__).parents[1] / "gpo_data").rglob("*.py"):
        assert "gpo_train" not in path.read_text().replace("gpo-train", ""), path


def test_members_that_are_clipped_are_no_equals() -> None:
    for other in ({"loss": "best_of_n"}, {"weighting": "max"}):
        with pytest.raises(UsageError, match="train.advantage_clip: expected null with pairs and best_of_n"):
            Train(advantage_clip=1.0, **other)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="train.loss: this one needs rewards"):
        group_loss(torch.ones(4), torch.tensor([1.0, 1.0, -1.0, -1.0]), loss="rwr")

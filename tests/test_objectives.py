"""Every objective against its authors' public code, and against each other where they coincide.

The numbers below came out of the authors' own lines, run on `tensors()` in float64: the loss, and the norm of its
gradient for each of the six predictions. Commits: Luo-Yihong/DGPO 01ceb4b, NVlabs/DiffusionNFT 24af555,
scxue/advantage_weighted_matching be51372, jacklishufan/diffusion-kto 226bbd0, SalesforceAIResearch/DiffusionDPO
5233e75, huggingface/diffusers 58eb52c, yifan123/flow_grpo ac4c86e, jannerm/ddpo f0b6ca7. GDRO and PNAPO have no public
code: their equations are worked out again here, in numpy.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from gpo_data.errors import UsageError
from gpo_data.recipe import Train
from gpo_data.recipe.training import Loss
from gpo_train.objectives.group import penalty, sample_loss
from gpo_train.objectives.pnapo import annealed
from gpo_train.objectives.terms import Terms, objective_of
from tests.parts.training import newest_of, train


def tensors() -> dict[str, Tensor]:
    """A group of six: what is to be predicted, and what the policy f, the reference and the old policy say."""
    rng = np.random.default_rng(23)
    x_0, e = torch.tensor(rng.normal(size=(2, 6, 4, 3, 3)))
    steps = torch.tensor(rng.normal(size=(3, 6, 4, 3, 3)))
    rewards = torch.tensor(rng.choice([0.0, 0.2, 0.5, 0.7, 1.0], size=6))
    reference = e - x_0 + 0.6 * steps[0]
    old = reference + 0.05 * steps[1]
    f = (old + 0.06 * steps[2]).requires_grad_()
    a = (rewards - rewards.mean()) / rewards.std(unbiased=False)
    return {"y": e - x_0, "reference": reference, "old": old, "f": f, "rewards": rewards, "a": a}


def square(x: Tensor) -> Tensor:
    return x.pow(2).flatten(1).mean(1)


def terms_of(found: dict[str, Tensor], reference: str = "reference", mix: float = 1.0, old: bool = False) -> Terms:
    y, f, theirs = found["y"], found["f"], found[reference]
    apart = (mix * (f - theirs)).detach()
    spreads = [(y - theirs - side).abs().flatten(1).mean(1) for side in (apart, -apart)]
    return Terms(
        square(y - f) - square(y - theirs),
        found["a"],
        found["rewards"],
        square(y - theirs),
        square(f - theirs),
        square(y - f) - square(y - found["old"]) if old else None,
        torch.full((6,), 0.6, dtype=torch.float64),
        (spreads[0], spreads[1]),
    )


# name: (settings, how the terms are made, the loss, the gradient's norms)
THEIRS: dict[str, tuple[dict[str, Any], dict[str, Any], float, list[float]]] = {
    "DGPO": (
        {"loss": "dgpo", "beta": 100.0},
        {},
        -0.013235256267595344,
        [
            0.010233946414637981,
            0.0007204558149543045,
            0.023833957031435028,
            0.0007027967767905385,
            0.02201052231187797,
            0.013491571554341662,
        ],
    ),
    "DGPO, clipped": (
        {"loss": "dgpo", "beta": 100.0, "clip_range": 1e-3},
        {"old": True},
        -0.013235256267595344,
        [0.010233946414637981, 0.0007204558149543045, 0.0, 0.0007027967767905385, 0.02201052231187797, 0.0],
    ),
    "DGPO, clipped, with kl": (
        {"loss": "dgpo", "beta": 100.0, "clip_range": 1e-3, "kl": 0.02, "reference": "frozen"},
        {"old": True},
        -0.013106130494621768,
        [
            0.010248844191790327,
            0.0007436628971216753,
            8.201039590908488e-05,
            0.0007235580821541553,
            0.022039661900905314,
            8.629009347810398e-05,
        ],
    ),
    "DiffusionNFT, beta 1": (
        {"loss": "nft", "reference": "frozen"},
        {"reference": "old"},
        2.165623086620585,
        [
            0.03545695750299519,
            0.020325257705627625,
            0.06826824245473229,
            0.018893991404296328,
            0.06301632729543657,
            0.04165643070286078,
        ],
    ),
    "DiffusionNFT, beta 0.1": (
        {"loss": "nft", "reference": "frozen", "interpolation": 0.1},
        {"reference": "old", "mix": 0.1},
        21.471136144494846,
        [
            0.027798441988734462,
            0.002897759854474285,
            0.06369512691831397,
            0.002797731147876726,
            0.06066145764381083,
            0.035437873648103635,
        ],
    ),
    "AWM": (
        {"loss": "awm", "clip_range": 1.0},
        {"old": True},
        0.0033160919023402778,
        [
            0.022978852529650613,
            0.0016071900823474109,
            0.053292276135627016,
            0.001565912952783843,
            0.04852870297142643,
            0.0301773623297523,
        ],
    ),
    "AWM, clipped": (
        {"loss": "awm", "clip_range": 1e-3},
        {"old": True},
        0.006181176237227099,
        [0.022978852529650613, 0.0016071900823474109, 0.0, 0.001565912952783843, 0.04852870297142643, 0.0],
    ),
    "Diffusion-KTO": (
        {"loss": "kto", "beta": 30.0},
        {},
        0.512323238985647,
        [
            0.25669726459633996,
            0.22479526359713087,
            0.23930780552247372,
            0.22379204260649746,
            0.20945745581183914,
            0.23476603564037848,
        ],
    ),
    "Diffusion-DPO": (
        {"loss": "logsigmoid", "weighting": "max", "beta": 100.0},
        {},
        0.6605020240701142,
        [0.0, 0.0, 5.218290092080846, 0.0, 4.508153748267093, 0.0],
    ),
    "IPO of diffusers": (
        {"loss": "ipo", "weighting": "max", "beta": 5.0},
        {},
        0.009736194811804814,
        [0.0, 0.0, 0.042605821070984, 0.0, 0.0368077643384832, 0.0],
    ),
    "SFT of Flow-GRPO": (
        {"loss": "best_of_n"},
        {},
        0.05218202061168645,
        [0.0, 0.0, 0.0, 0.0, 0.031085908624829198, 0.0],
    ),
    "RWR of DDPO, 5": (
        {"loss": "rwr", "temperature": 1 / 5},
        {},
        0.326125703477252,
        [
            0.03267087303901849,
            0.010999522253599825,
            0.001029979121011284,
            0.010729913792917425,
            0.13206001161952807,
            0.0027035746678748043,
        ],
    ),
    "RWR of DDPO, 2": (
        {"loss": "rwr", "temperature": 1 / 2},
        {},
        0.34003818242075806,
        [
            0.04328817888498733,
            0.026555781552946786,
            0.011144367081076323,
            0.02590487479339503,
            0.0711401658125701,
            0.01605419992607425,
        ],
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_an_objective_is_what_its_authors_code_computes(name: str) -> None:
    options, how, loss, norms = THEIRS[name]
    settings, found = Train(**options), tensors()
    objective, terms = objective_of(settings.loss), terms_of(found, **how)
    assert terms.distance is not None
    ours = sample_loss(objective, terms, settings) + penalty(terms.distance, settings.kl, objective.unit(settings))
    (gradient,) = torch.autograd.grad(ours, found["f"])
    assert ours.item() == pytest.approx(loss, rel=1e-9)
    assert gradient.flatten(1).norm(dim=1).tolist() == pytest.approx(norms, rel=1e-9, abs=1e-15)


def gradient_of(terms: Terms, **options: Any) -> Tensor:
    settings = Train(**options)
    return torch.autograd.grad(sample_loss(objective_of(settings.loss), terms, settings), terms.s, retain_graph=True)[0]


def test_where_objectives_coincide() -> None:
    """As docs/objectives.md has it."""
    found = tensors()
    terms = terms_of(found)
    for weighting in ("zscore", "sign", "all", "max", "min"):
        ours = gradient_of(terms, loss="logsigmoid", weighting=weighting, beta=300.0)
        torch.testing.assert_close(ours, 300 * gradient_of(terms, loss="dgpo", weighting=weighting, beta=300.0))
    at_the_old = Terms(torch.zeros(6, dtype=torch.float64, requires_grad=True), found["a"], found["rewards"])
    linear = gradient_of(at_the_old, loss="linear")
    torch.testing.assert_close(gradient_of(at_the_old, loss="awm"), linear)
    torch.testing.assert_close(gradient_of(at_the_old, loss="awm", clip_range=0.1), linear)
    torch.testing.assert_close(gradient_of(at_the_old, loss="dgpo"), linear / 2)
    torch.testing.assert_close(gradient_of(at_the_old, loss="ipo", beta=50.0), linear * 2 / 50)
    t, spread, nothing = found["a"].new_full((6,), 0.8), found["rewards"] + 0.5, torch.zeros_like(found["a"])
    implicit = dataclasses.replace(at_the_old, reference=spread, distance=nothing, t=t, spreads=(spread, spread))
    assert found["a"].abs().max() < 5  # what `nft` clips
    torch.testing.assert_close(
        gradient_of(implicit, loss="nft", reference="adapters", interpolation=0.1), linear * t / spread
    )
    # Two members, a sharp target and no anchor: GDRO is Diffusion-DPO, at twice its beta.
    two = torch.tensor([4, 2])
    pair = Terms(terms.s.detach()[two].requires_grad_(), torch.tensor([1.0, -1.0]).double(), found["rewards"][two])
    dpo = gradient_of(pair, loss="logsigmoid", weighting="max", beta=200.0)
    torch.testing.assert_close(gradient_of(pair, loss="gdro", beta=100.0, temperature=1e-3, top_weight=0.0), dpo)


def numpy_gdro(s: np.ndarray, r: np.ndarray, error: np.ndarray, beta: float, tau: float, weight: float) -> float:
    order = sorted(range(len(s)), key=lambda i: (-r[i], i))
    u = [-beta * s[i] for i in order]
    total = weight * error[order[0]]
    for i in range(len(s) - 1):
        q = np.exp([r[j] / tau for j in order[i:]])
        total += np.log(np.exp(u[i:]).sum()) - float((q / q.sum() * u[i:]).sum())
    return float(total)


def test_gdro_and_pnapo_are_their_papers_equations() -> None:
    terms = terms_of(tensors())
    assert terms.rewards is not None
    s, r, error = terms.s.detach().numpy(), terms.rewards.numpy(), terms.error.detach().numpy()
    gdro = Train(loss="gdro", beta=12.0, temperature=0.05, top_weight=0.5)
    expected = numpy_gdro(s, r, error, 12.0, 0.05, 0.5)
    assert sample_loss(objective_of("gdro"), terms, gdro).item() == pytest.approx(expected, rel=1e-9)

    def pair(b: int, w: int) -> float:
        return float(np.log1p(np.exp(80 * 0.5 * (2 / (1 + np.exp(r[w] - r[b])) - 1) * (s[b] - s[w]) / 2)))

    pnapo = Train(loss="pnapo", beta=80.0, weighting="all", noise="own", beta_decay=[10, 20])
    expected = float(np.mean([pair(b, w) for b, w in itertools.permutations(range(6), 2) if r[b] > r[w]]))
    late = Terms(terms.s, terms.advantages, terms.rewards, step=40)
    assert sample_loss(objective_of("pnapo"), late, pnapo).item() == pytest.approx(expected, rel=1e-9)
    assert [annealed(n, [10, 20]) for n in (0, 10, 15, 20, 99)] == pytest.approx([1, 1, 0.75, 0.5, 0.5])
    assert annealed(1000, None) == 1


def test_no_pair_of_pnapo_is_trained_the_wrong_way_round() -> None:
    """Several rewards: A counts each by its spread, r by its unit; here they agree on two pairs of three."""
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    terms = Terms(s, torch.tensor([1.0, 0.2, -1.2]), torch.tensor([1.0, 5.0, 0.5]))
    (gradient,) = torch.autograd.grad(
        sample_loss(objective_of("pnapo"), terms, Train(loss="pnapo", weighting="all", noise="own")), s
    )
    assert gradient[0] > 0 and gradient[2] < 0 and gradient[1] > 0


def test_of_kto_rounding_makes_nobody_better() -> None:
    rewards = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    advantages = (rewards - rewards.mean()) / rewards.std(unbiased=False)
    losses = [
        sample_loss(objective_of("kto"), Terms(torch.tensor([0.3, 0.1, -0.2]), advantages + one), Train(loss="kto"))
        for one in (-1e-15, 1e-15)
    ]
    assert losses[0] == pytest.approx(losses[1])


def test_what_a_loss_needs_is_checked_with_the_recipe() -> None:
    with pytest.raises(UsageError, match=r"train.reference: expected frozen or adapters with train.loss: nft"):
        Train(loss="nft")
    with pytest.raises(UsageError, match=r"train.weighting: expected zscore or sign with train.loss: kto \(pairs are"):
        Train(loss="kto", weighting="max")
    with pytest.raises(UsageError, match=r"train.noise: expected own with train.loss: pnapo, found 'random'"):
        Train(loss="pnapo", weighting="max")
    with pytest.raises(UsageError, match=r"train.diversity_bonus: expected null with train.loss: gdro, which reads"):
        Train(loss="gdro", diversity_bonus="[edge_density]")
    with pytest.raises(UsageError, match=r"train.mean_shift_penalty: expected 0 with train.loss: rwr"):
        Train(loss="rwr", mean_shift_penalty=0.1)


NEEDS = {"nft": ["--train.reference", "frozen"], "pnapo": ["--train.weighting", "max", "--train.noise", "own"]}


@pytest.mark.parametrize("loss", [loss for loss in get_args(Loss) if loss not in ("linear", "logsigmoid")])
def test_every_objective_trains(here: Path, loss: str) -> None:
    """Two epochs on real shards; that the gradient is one of whole groups is tested in test_module.py."""
    extra = ["--train.loss", loss, "--train.clip_range", "0.001", *NEEDS.get(loss, [])]
    whole = train(here, *extra, name="whole")
    assert whole.manifest().steps == 6 and newest_of(whole) is not None
    rows = (whole.folder / "logs/csv/metrics.csv").read_text().splitlines()
    assert "clipped_share" in rows[0] and "nan" not in rows[-1]

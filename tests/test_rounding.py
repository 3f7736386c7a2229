"""Weights of two bytes: a small move is seen where it is drawn, and what has not moved is drawn as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpo_data import models, recipe
from gpo_data.models.rounding import drawn_weights, round_randomly
from gpo_train import dead_zone
from gpo_train.settings import train_settings
from tests.parts.training import train, weights_of

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("kind", HALF, ids=str)
def test_on_average_a_number_is_itself(kind: torch.dtype) -> None:
    x = torch.cat([torch.randn(50), torch.randn(50) * 1e-3, torch.tensor([0.0, 1e-9, -1e-9, 1.0, -2.0, 255.9, -0.1])])
    draws = torch.stack([round_randomly(x, kind, torch.Generator().manual_seed(seed)).float() for seed in range(4000)])
    near = x.to(kind).float()
    gap = (draws.max(0).values - draws.min(0).values).clamp(min=1e-12)
    assert ((draws.mean(0) - x).abs() <= 5 * gap / 4000**0.5 + 1e-12).all()
    for i, values in enumerate(draws.T):  # two neighbours, one of them the nearest
        found = values.unique()
        assert len(found) <= 2 and near[i] in found
        if len(found) == 2:
            assert found[0] < x[i] < found[1] and torch.nextafter(found[0], found[1]) < found[1]


@pytest.mark.parametrize("kind", HALF, ids=str)
def test_what_two_bytes_hold_stays(kind: torch.dtype) -> None:
    x = torch.randn(1000).to(kind)
    assert torch.equal(round_randomly(x.float(), kind, torch.Generator().manual_seed(0)), x)
    largest = torch.tensor([torch.finfo(kind).max])
    assert torch.equal(round_randomly(largest, kind, torch.Generator()), largest.to(kind))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
def test_a_move_far_below_half_a_step_is_drawn_in_proportion(tmp_path: Path, stored: torch.dtype) -> None:
    torch.manual_seed(0)
    base = {"w": torch.randn(200_000).to(stored), "still": torch.randn(1000).to(stored)}
    move = 2e-5 * torch.sign(torch.randn(200_000))
    save_file(base, tmp_path / "base.safetensors")
    save_file({"w": base["w"].float() + move, "still": base["still"].float()}, tmp_path / "policy.safetensors")
    files = [tmp_path / "policy.safetensors"], [tmp_path / "base.safetensors"]
    drawn, changed = drawn_weights(*files, torch.bfloat16, 0)
    again, _ = drawn_weights(*files, torch.bfloat16, 0)
    other, _ = drawn_weights(*files, torch.bfloat16, 1)
    assert torch.equal(drawn["w"], again["w"]) and not torch.equal(drawn["w"], other["w"])
    plain = base["w"].to(torch.bfloat16).float()
    seen = ((drawn["w"].float() - plain) * torch.sign(move)).mean().item()
    assert seen == pytest.approx(2e-5, rel=0.15) and 0 < changed < 0.1
    assert torch.equal(drawn["still"], base["still"].to(torch.bfloat16))
    exact, _ = drawn_weights(*files, torch.float32, 0)
    assert torch.equal(exact["w"], base["w"].float() + move)


def test_a_step_of_the_papers_rate_is_kept_and_drawn(here: Path) -> None:
    """12 steps at 2e-8 moved nearly all weights and 0.04% of what was written and drawn with."""
    run = train(here, "--train.learning_rate", "2e-8", "--sampler.dtype", "float32", name="small")
    made = recipe.load(here, ["--sampler.dtype", "bfloat16"])
    own = load_file(next(Path(made.model).glob("transformer/*.safetensors")))
    trained = weights_of(run)
    kept = [(trained[name].float() != own[name].float()).float().mean().item() for name in own]
    assert min(kept) >= 0 and sum(kept) / len(kept) > 0.5 and all(v.dtype == torch.float32 for v in trained.values())
    model = models.load(Path(made.model), made.sampler)
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    changed = models.load_policy_weights(model, run.policy, seed=0)
    after = model.denoiser.state_dict()
    assert changed is not None and changed > 0
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_run_that_cannot_leave_the_dead_zone_says_so(here: Path) -> None:
    model = models.load(Path(recipe.load(here).model), recipe.load(here).sampler)

    def told(*overrides: str) -> str | None:
        made = recipe.load(here, ["--sampler.dtype", "bfloat16", *overrides])
        return dead_zone.warning(made, train_settings(made), model.denoiser)

    text = told("--train.learning_rate", "2e-8")
    assert text is not None and "2e-08 over 6 steps moves a weight by 1.2e-07 at most" in text
    assert told("--train.learning_rate", "1e-3") is None
    for other in (["--sampler.dtype", "float32"], ["--train.tuning", "lora"]):
        assert told("--train.learning_rate", "2e-8", *other) is None

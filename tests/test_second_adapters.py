"""A reference that follows the policy under LoRA: a second set of adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpo_train.checkpoint import newest
from gpo_train.noise import sample_noise
from gpo_train.policy import of_reference
from gpo_train.run import Run
from tests.conftest import killed_at
from tests.parts.online import quiet
from tests.parts.training import equal, moved, reader_of, train, weights_of

SECOND = ["--train.tuning", "lora", "--train.reference", "adapters", "--train.reference_update"]


def test_the_second_adapters_are_the_base_and_then_the_policy(here: Path) -> None:
    policy, group = moved(here, *SECOND, "iteration"), reader_of(here)[0]
    noise = sample_noise(group, k=2)
    base = moved(here, *SECOND, "never").reference_errors(group, noise)
    before = {name: p.clone() for name, p in policy.denoiser.named_parameters()}
    assert torch.equal(policy.reference_errors(group, noise), base)
    assert not torch.equal(policy.present_errors(group, noise), base)
    trains = {id(p) for p in policy.trainable()}
    policy.follow(0.0)
    assert torch.equal(policy.reference_errors(group, noise), policy.present_errors(group, noise))
    assert policy.error_difference(group, noise).abs().max() == 0  # s at the reference
    assert {id(p) for p in policy.trainable()} == trains and not any(
        p.requires_grad for name, p in policy.denoiser.named_parameters() if of_reference(name)
    )
    for name, p in policy.denoiser.named_parameters():  # only the reference moved
        assert of_reference(name) or torch.equal(p, before[name])
    policy.error_difference(group, noise).sum().backward()
    assert all(p.grad is None for name, p in policy.denoiser.named_parameters() if of_reference(name))
    assert all(p.grad is not None for p in policy.trainable())


def test_the_average_is_of_each_matrix(here: Path) -> None:
    policy = moved(here, *SECOND, "ema")
    named = {name: p.clone() for name, p in policy.denoiser.named_parameters()}
    policy.follow(0.75)
    checked = 0
    for name, p in policy.denoiser.named_parameters():
        if of_reference(name):
            expected = 0.75 * named[name].double() + 0.25 * named[name.replace(".reference.", ".default.")].double()
            assert torch.allclose(p.double(), expected, atol=1e-7, rtol=0)
            checked += not torch.equal(p, named[name])
    assert checked and policy.saved_names() >= {f"denoiser.{n}" for n in named if of_reference(n)}
    assert not any("reference" in name for name in moved(here, *SECOND, "never").saved_names())


@pytest.mark.parametrize("update", ["iteration", "ema"])
def test_killed_in_the_middle_of_an_epoch_equals_never_killed(here: Path, update: str) -> None:
    extra = [*SECOND, update, "--train.learning_rate", "1e-2", "--train.reference_decay", "0.5"]
    whole = train(here, *extra, name="whole")
    with killed_at(4):  # in the second epoch, which has a reference of its own
        train(here, *extra)
    assert equal(weights_of(train(here, *extra)), weights_of(whole))
    assert not equal(weights_of(train(here, *SECOND, "never", *extra[6:], name="base")), weights_of(whole))
    assert not any("reference" in name for name in weights_of(whole))
    path = newest(Run(Path("runs/whole")).folder / "checkpoints", quiet())
    assert path is not None
    saved = torch.load(path, weights_only=True)["state_dict"]
    ours = {name: value for name, value in saved.items() if of_reference(name)}
    behind = [n for n, value in ours.items() if not torch.equal(value, saved[n.replace(".reference.", ".default.")])]
    assert len(behind) > len(ours) / 2  # and what no gradient reaches is equal


def test_it_is_the_stored_errors_of_the_same_policy(here: Path) -> None:
    """Another way to the same reference: the policy's own errors at the start of the epoch."""
    extra = ["--train.learning_rate", "1e-3"]
    second = weights_of(train(here, *SECOND, "iteration", *extra, name="second"))
    stored = ["--train.tuning", "lora", "--train.reference", "stored", "--train.reference_update", "iteration"]
    other = weights_of(train(here, *stored, *extra, name="stored"))
    for name, value in second.items():
        assert torch.allclose(value, other[name], atol=1e-5), name

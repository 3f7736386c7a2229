"""`train.kl_reference: base`: errors are compared with the policy as it began the iteration, `kl` holds to the base."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from gpo_data.errors import UsageError
from gpo_data.recipe import Train
from gpo_train.noise import sample_noise
from gpo_train.rows import Compared
from gpo_train.run import Run
from tests.conftest import killed_at
from tests.parts.training import equal, moved, newest_of, reader_of, train, weights_of

FOLLOWS = ["--train.kl", "0.1", "--train.reference_update", "iteration"]
ANCHORED = [*FOLLOWS, "--train.kl_reference", "base"]
FULL = ["--train.reference", "frozen", "--train.learning_rate", "1e-3"]
LORA = ["--train.tuning", "lora", "--train.learning_rate", "1e-2", "--train.reference"]
WAYS = pytest.mark.parametrize(
    "way", [FULL, [*LORA, "adapters"], [*LORA, "stored"]], ids=["full", "adapters", "stored"]
)


def logged(run: Run, name: str) -> list[float]:
    """Of each step; an epoch has three."""
    with (run.folder / "logs/csv/metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@WAYS
def test_an_iteration_begins_at_its_own_policy_and_away_from_the_base(here: Path, way: list[str]) -> None:
    run = train(here, *way, *ANCHORED)
    apart, kl = logged(run, "error_diff"), logged(run, "kl")
    assert len(kl) == 6 and kl[0] < 1e-12 < 1e-7 < kl[3] and kl[1] < kl[3]
    assert abs(apart[0]) < 1e-6 and abs(apart[3]) < 1e-6 < abs(apart[2])
    if "stored" not in way:
        assert logged(train(here, *way, *FOLLOWS, name="other"), "kl")[3] < 1e-12


@WAYS
def test_the_distance_is_that_to_the_base(here: Path, way: list[str]) -> None:
    never = [*way, "--train.reference_update", "never"]
    policy, group = moved(here, *way, *ANCHORED), reader_of(here)[0]
    noise = sample_noise(group, k=2)
    found = policy.compared(group, noise)
    expected = moved(here, *never).compared(group, noise)
    assert torch.equal(found.distance, expected.distance) and found.distance.min() > 0
    assert not policy.reference_moves and not any(
        "frozen" in name or "reference" in name for name in policy.saved_names()
    )
    old = policy.present_errors(group, noise).flatten()
    assert found.against(old).s.abs().max() < 1e-6 < found.s.abs().max()


def test_against_the_old_policy() -> None:
    one = Compared(torch.tensor([0.5, -0.25]), torch.ones(2), torch.tensor([1.0, 2.0])).against(
        torch.tensor([1.25, 1.5])
    )
    assert one.reference is not None and one.s.tolist() == [0.25, 0.25] and one.reference.tolist() == [1.25, 1.5]


@WAYS
def test_killed_in_the_middle_of_an_epoch_equals_never_killed(here: Path, way: list[str]) -> None:
    whole = train(here, *way, *ANCHORED, name="whole")
    with killed_at(4):  # in the second epoch, which has errors of its own
        train(here, *way, *ANCHORED)
    path = newest_of(Run(Path("runs/a")))
    assert path is not None
    assert not any("frozen" in name for name in torch.load(path, weights_only=True)["state_dict"])
    assert equal(weights_of(train(here, *way, *ANCHORED)), weights_of(whole))


def test_what_it_needs_is_checked_with_the_recipe() -> None:
    with pytest.raises(UsageError, match="train.kl: expected above 0 beside kl_reference: base"):
        Train(kl_reference="base", reference="frozen")
    with pytest.raises(UsageError, match=r"train.kl: expected 0 \(.*with LoRA, train.kl_reference: base\), found 0.1"):
        Train(kl=0.1, kl_reference="base", tuning="full")
    with pytest.raises(UsageError, match="train.reference_update: expected iteration beside train.kl_reference: base"):
        Train(kl=0.1, kl_reference="base", tuning="full", reference="frozen", reference_update="ema")
    with pytest.raises(UsageError, match="train.kl_reference: expected reference with train.loss: nft"):
        Train(kl=0.1, kl_reference="base", reference="frozen", loss="nft")
    assert Train(kl=0.1, kl_reference="base", tuning="lora", reference_update="iteration").anchored
    assert not Train(kl=0.1, kl_reference="base", tuning="lora", reference_update="never").anchored

"""The diversity bonus, against the public code of GARDO and in a snapshot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gpo_data.errors import UsageError
from gpo_data.lake.advantage import Scale, standardise
from gpo_data.lake.novelty import bonus
from tests.parts.training import train

REWARDS = np.array([0.1, 0.9, 0.4, 0.8, 0.5, 0.5, 1.0, 0.2])
GROUP = np.array([0] * 4 + [1] * 4)
FEATURES = np.array([[1, 0, 0], [1, 1, 0], [0, 3, 1], [0, 0, 1], [2, 1, 0], [1, 0, 3], [0, 1, 1], [1, 1, 1.0]])
# PerPromptStatTracker.update(type="gardo") of its flow_grpo/stat_tracking.py at commit 1cc77fb, of these.
PUBLISHED = [-0.45, 0.256483823456, -0.15, 0.427694916196, -0.05, -0.05, 0.383135379332, -0.35]


def test_the_advantages_are_those_of_the_public_code() -> None:
    plain, _ = standardise(GROUP, REWARDS, 2, Scale("none"))
    np.testing.assert_allclose(plain * bonus(GROUP, plain, FEATURES), PUBLISHED, atol=1e-11)
    by_std, _ = standardise(GROUP, REWARDS, 2)  # who is above the mean does not depend on the unit
    np.testing.assert_array_equal(bonus(GROUP, by_std, 5 * FEATURES), bonus(GROUP, plain, 5 * FEATURES))
    assert (bonus(GROUP, plain, np.ones((8, 3))) == 1).all()  # all alike
    assert (bonus(np.arange(8), plain, FEATURES) == 1).all()  # alone


def test_a_run_has_the_bonus_in_its_snapshot(here: Path) -> None:
    features = "[entropy, dark_fraction * 100, edge_density * 10]"
    extra = ["--train.diversity_bonus", features, "--train.epochs", "1"]
    run, plain = train(here, *extra), train(here, "--train.epochs", "1", name="plain")
    found, before = (pq.read_table(one.folder / "snapshot.parquet").to_pydict() for one in (run, plain))
    factor, advantages = np.array(found["bonus"]), np.array(before["advantage"])
    assert "bonus" not in before and found["reward"] == before["reward"]
    np.testing.assert_allclose(np.array(found["advantage"]), advantages * factor, rtol=1e-12)
    assert (factor[advantages < 0] == 1).all() and len(set(factor[advantages > 0])) > 6
    snapshots = [one.manifest().snapshot for one in (run, plain)]
    assert snapshots[0] and snapshots[1] and snapshots[0]["digest"] != snapshots[1]["digest"]
    clipped = train(here, *extra, "--train.advantage_clip", "0.5", name="clipped")
    table = pq.read_table(clipped.folder / "snapshot.parquet").to_pydict()
    np.testing.assert_allclose(table["advantage"], np.clip(advantages * factor, -0.5, 0.5), rtol=1e-12)


@pytest.mark.parametrize(
    "features, message",
    [
        ("ocr_text", "expected SQL for a list of numbers"),
        ("nothing", "expected SQL for a list of numbers"),
        ("[0.0, 0.0]", "expected finite numbers, not all 0"),
        ("CASE WHEN member = 0 THEN [1.0] ELSE [1.0, 2.0] END", r"as many numbers of every member, found 1, 2"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(here: Path, features: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"train.diversity_bonus: .*{message}"):
        train(here, "--train.diversity_bonus", features)

"""GARDO's gate: who is penalised for the distance to the reference, by hand, in snapshots and in gradients."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gpo_data import recipe
from gpo_data.errors import UsageError
from gpo_data.lake import catalog
from gpo_data.lake.reader import Reader, TrainGroup, merge
from gpo_data.lake.uncertainty import gated, uncertainty
from gpo_data.recipe import Train
from gpo_train.data import snapshot_of
from gpo_train.module import GPOModule
from gpo_train.objectives.group import penalty
from tests.parts.training import module_of, reader_of, train

JUDGES = ["-dark_fraction", "edge_density"]
KL = ["--train.reference", "frozen", "--train.kl", "0.5", "--train.beta", "10"]
GATE = [*KL, "--train.kl_judges", json.dumps(JUDGES), "--train.kl_share", "0.5"]


def test_uncertainty_is_the_win_rate_less_the_judges() -> None:
    reward = np.array([0.0, 1.0, 1.0, 3.0])  # win rates 0, 1/2, 1/2, 1: a tie is half a win
    first, second = np.array([4.0, 3.0, 2.0, 1.0]), np.array([0.0, 0.0, 9.0, 0.0])  # 1 2/3 1/3 0 and 1/3 1/3 1 1/3
    found = uncertainty(reward, [first, second])
    np.testing.assert_allclose(found, [-2 / 3, 0, -1 / 6, 1 - 1 / 6], atol=1e-12)
    assert found[1] == 0  # exactly: what is equal is not doubted
    np.testing.assert_array_equal(uncertainty(10 * reward - 4, [np.exp(first), second]), found)  # ranks alone
    np.testing.assert_array_equal(gated(found, 0.1), [False, False, False, True])
    assert not gated(uncertainty(reward, [reward]), 1.0).any()
    assert not uncertainty(np.array([1.0]), [np.array([2.0])]).any()  # alone
    ten = np.arange(-10, 10) / 10
    assert gated(ten, 1.0).sum() == 9 and gated(ten, 0.1).sum() == 1 and gated(ten, 0.5).sum() == 5
    assert gated(np.array([0.5, 0.5, 0.5, 0.1]), 0.1).sum() == 3  # as doubtful, together
    assert gated(np.array([0.5, 0.4, -0.9]), 0.5).tolist() == [True, False, False]


def test_the_penalty_holds_the_weighed_alone() -> None:
    distances = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert penalty(distances, 0.5, 10.0, torch.tensor([0.0, 1, 0, 1])).item() == 0.5 * 10 * (2 + 8) / 4
    assert penalty(distances, 0.5, 10.0, torch.ones(4)) == penalty(distances, 0.5, 10.0)


def test_a_run_has_the_gate_in_its_snapshot(here: Path) -> None:
    run = train(here, *GATE, "--train.epochs", "1")
    frozen = pq.read_table(run.folder / "snapshot.parquet")
    plain = snapshot_of(recipe.load(here, KL), "small")
    found, before = frozen.to_pydict(), plain.to_pydict()
    weight, doubt = np.array(found["kl_weight"]), np.array(found["uncertainty"])
    assert "kl_weight" not in before and found["advantage"] == before["advantage"]
    assert frozen.schema.metadata[b"digest"] != plain.schema.metadata[b"digest"]
    assert set(weight) == {0.0, 1.0} and weight.sum() == np.ceil((doubt > 0).sum() / 2)
    assert doubt[weight == 1].min() >= doubt[(weight == 0) & (doubt > 0)].max() > 0
    asked = f"SELECT reward, {', '.join(JUDGES)} FROM members ORDER BY group_key, member"
    reward, *judges = (np.array(column) for column in catalog.ask("lake", asked).to_pydict().values())
    beats = [np.sign(one[:, None] - one[None, :]).sum(1) / 2 / (len(one) - 1) for one in (reward, *judges)]
    np.testing.assert_allclose(doubt, beats[0] - (beats[1] + beats[2]) / 2, atol=1e-12)
    logged = (run.folder / "logs/csv/metrics.csv").read_text().splitlines()
    of_steps = [dict(zip(logged[0].split(","), line.split(","), strict=True)) for line in logged[1:]]
    assert sum(float(one["kl_gated"]) for one in of_steps) / len(of_steps) == pytest.approx(weight.mean())


def test_few_members_and_borrowed_ones_keep_their_gate(here: Path) -> None:
    few = recipe.load(here, [*GATE, "--train.members_per_group", "2"])
    table = snapshot_of(few, "small")
    doubt = np.array(table["uncertainty"])
    assert len(doubt) == 12 and np.array_equal(np.array(table["kl_weight"]) == 1, gated(doubt, 0.5))
    whole = snapshot_of(recipe.load(here, GATE), "small").to_pydict()
    known = dict(zip(zip(whole["group_key"], whole["member"], strict=True), whole["uncertainty"], strict=True))
    rows = zip(table["group_key"].to_pylist(), table["member"].to_pylist(), strict=True)
    assert [known[row] for row in rows] == doubt.tolist()  # among all, though two of four train
    lent = snapshot_of(recipe.load(here, [*GATE, "--relabel", "length(lender.target) > 0"]), "small")
    group = Reader(few.lake, lent)[0]
    assert group.kl_weights is not None and len(group.kl_weights) == len(group.latents) == 24
    assert group.kl_weights.tolist() == lent["kl_weight"].to_pylist()[:24]
    both = Reader(few.lake, merge([table, table]))  # replay
    assert both[0].kl_weights is not None and both[0].kl_weights.tolist() == table["kl_weight"].to_pylist()[:2] * 2
    assert Reader(few.lake, snapshot_of(recipe.load(here, KL), "small"))[0].kl_weights is None


def gradient(module: GPOModule, group: TrainGroup, **settings: float) -> torch.Tensor:
    module.settings = dataclasses.replace(module.settings, **settings)  # type: ignore[arg-type]
    module.zero_grad()
    module.group_backward(group)
    return flat(module)


def flat(module: GPOModule) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.policy.trainable() if p.grad is not None])


@pytest.mark.parametrize(
    "extra", [[], ["--train.tuning", "lora", "--train.reference", "adapters"]], ids=["full", "lora"]
)
def test_members_that_are_not_gated_have_no_penalty(here: Path, tmp_path: Path, extra: list[str]) -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    gate, none, every = (dataclasses.replace(reader_of(here)[0], kl_weights=w) for w in (weights, 0 * weights, None))
    module, kl = module_of(here, tmp_path, *KL, *extra), 500.0
    whole = gradient(module, gate, kl=kl, micro_batch_size=80)
    close = {"rtol": 1e-3, "atol": 1e-4 * float(whole.abs().max())}
    for size in (4, 3):  # one noise sample, and less than one
        torch.testing.assert_close(gradient(module, gate, micro_batch_size=size), whole, **close)
    ungated = gradient(module, none)
    assert (gradient(module, every) - whole).abs().max() > 10 * close["atol"]
    without = gradient(module, every, kl=0.0)
    torch.testing.assert_close(ungated, without, **close)
    # What the gate adds is the penalty of its members, worked out by itself.
    noise = module.noise_of(0, gate)
    apart = module.policy.compared(gate, noise).distance.view(noise.u.shape)
    module.zero_grad()
    (kl * 10 * apart[:, [1, 3]].sum() / apart.numel()).backward()
    assert flat(module).abs().max() > 10 * close["atol"]
    torch.testing.assert_close(whole - without, flat(module), **close)


def test_what_cannot_be_gated_is_refused(here: Path) -> None:
    with pytest.raises(UsageError, match=r"train.kl: expected above 0 beside kl_judges"):
        Train(kl_judges=["entropy"])
    with pytest.raises(UsageError, match="train.kl_share"):
        Train(kl=1.0, kl_share=0.0, reference="frozen")
    for judge, message in (
        ("ocr_text", "expected SQL for a number, such as a column of another evaluator, found the type VARCHAR"),
        ("nothing", 'expected SQL for a number.* "nothing" not found'),
        ("1) FROM members; SELECT (1", ""),
        ("CASE WHEN member > 0 THEN 1 END", "expected a finite number of every member, found none of 6 of 24"),
    ):
        with pytest.raises(UsageError, match=f"train.kl_judges: .*{message}"):
            train(here, *KL, "--train.kl_judges", json.dumps([judge]))
    watched = ["--watchers", "[color]", "--train.kl_judges", '["color_share"]']
    with pytest.raises(UsageError, match="train.kl_judges: 'color_share': reads color_share, which is only watched"):
        train(here, *KL, *watched)

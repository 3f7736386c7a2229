"""Groups of different sizes over ranks that gather their weights together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpo_data.lake import catalog
from gpo_train import gradcache
from gpo_train.rows import Compared
from gpo_train.run import Run
from tests.parts.training import train, weights_of

# Groups of 4 and of 2 by turns: in micro-batches of 3 they need two passes a noise sample, and one.
UNEVEN = ["--where", "member < 2 OR right(group_key, 1)::int % 2 = 0", "--train.micro_batch_size", "3"]


@pytest.mark.parametrize(
    "extra",
    [
        ["--train.clip_range", "0.2", "--train.reference", "frozen"],
        pytest.param([], marks=pytest.mark.slow),
        pytest.param(["--train.objective", "sft", "--train.sft_reward", "0.2"], marks=pytest.mark.slow),
        pytest.param(["--train.reference", "frozen", "--train.kl", "50"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_two_ranks_of_sharded_weights_take_groups_of_any_size(here: Path, tmp_path: Path, extra: list[str]) -> None:
    options = [*UNEVEN, *extra, "--train.epochs", "1"]
    one = train(here, *options, name="one")
    two = Run(tmp_path / "runs" / "two")
    command = [sys.executable, "-m", "gpo_train.cli", "fit", str(here), "--run", "two", *options]
    ranks = ["--train.trainer.devices", "2", "--train.trainer.accelerator", "cpu", "--train.trainer.strategy", "fsdp2"]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    subprocess.run([*command, *ranks], check=True, cwd=tmp_path, timeout=200, env=environment)
    assert two.manifest().steps == one.manifest().steps > 0
    members = catalog.connect("lake", "small").sql(f"SELECT count(*) FROM members WHERE {UNEVEN[1]} GROUP BY group_key")
    assert {n for (n,) in members.fetchall()} == {2, 4}
    alone, together = weights_of(one), weights_of(two)
    for name in alone:
        torch.testing.assert_close(alone[name], together[name], rtol=1e-3, atol=3e-4)


@pytest.mark.parametrize("most", [5, 9, 14])
@pytest.mark.parametrize("size", [4, 6, 11])
def test_passes_for_nothing_leave_the_gradient_alone(most: int, size: int) -> None:
    """k = 3 noise samples of n = 5 members; a rank with `most` members makes as many passes of the same kind."""
    torch.manual_seed(0)
    inputs = torch.randn(3 * most, 2, dtype=torch.float64)

    def passes_and_gradient(n: int, most: int) -> tuple[list[bool], Tensor]:
        weight, passes = torch.ones(2, dtype=torch.float64, requires_grad=True), []

        def ask(rows: slice) -> Compared:
            assert 0 < len(inputs[rows]) <= size
            passes.append(torch.is_grad_enabled())
            s = inputs[rows] @ weight
            return Compared(s, s**2)

        of = gradcache.GroupLoss(lambda one: (one.s.std() + one.s.mean()) ** 2, lambda some: some.distance.mean())
        gradcache.backward(ask, of, 3, n, size, lambda loss, last: ends.append(last) or loss.backward(), most)
        assert weight.grad is not None
        return passes, weight.grad

    ends: list[bool] = []
    mine, gradient = passes_and_gradient(5, most)
    assert ends == [False] * (len(ends) - 1) + [True]
    theirs, _ = passes_and_gradient(most, most)
    assert mine == theirs
    torch.testing.assert_close(gradient, passes_and_gradient(5, 5)[1])

"""The callback in a Trainer with somebody's own module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from gpo_data import recipe
from gpo_data.errors import UsageError
from gpo_data.lake import catalog
from gpo_data.lake.reader import TrainGroup
from gpo_data.recipe import Online, Train
from gpo_train import OnlineRegeneration, Policy, group_loss, sample_noise
from gpo_train.online.iterations import Iteration
from tests.conftest import RECIPE
from tests.parts.training import equal


class Mine(L.LightningModule):
    """Somebody's own module: a policy, a step, an optimiser."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def training_step(self, group: TrainGroup, index: int) -> torch.Tensor:
        return group_loss(self.policy.error_difference(group, sample_noise(group, 2, seed=index)), group.advantages)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.policy.trainable(), lr=1e-3)


def test_it_works_in_a_trainer_with_a_module_of_ones_own(
    tmp_path: Path, random_sd3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(RECIPE.format(model=random_sd3, lake="lake"))
    made = recipe.load(tmp_path / "small.yaml")
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    policy = Policy.load(made.model, Train(tuning="lora", reference="adapters", precision="float32"), made.sampler)
    regeneration = OnlineRegeneration(made, Online(iterations=2, grid_every=0), console=Console(quiet=True))
    L.Trainer(callbacks=[regeneration], **options).fit(Mine(policy))
    drawn = catalog.connect("lake").execute("SELECT dataset FROM datasets ORDER BY 1").fetchall()
    assert drawn == [("small-online-it0000",), ("small-online-it0001",)]
    first, second = (
        load_file(next(Iteration(Path("runs/small-online"), i).policy.glob("*.safetensors"))) for i in (0, 1)
    )
    assert not equal(first, second)
    other = Mine(policy)
    other.policy = None  # type: ignore[assignment]
    with pytest.raises(UsageError, match="expected Mine.policy to be a gpo_train Policy, found NoneType"):
        L.Trainer(callbacks=[OnlineRegeneration(made)], **options).fit(other)

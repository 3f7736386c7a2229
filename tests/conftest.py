"""Small real parts: a StableDiffusion3Pipeline with random weights and a recipe that draws with it in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from gpo_data.tiny.pipeline import new_text_encoder, new_tokenizer, new_transformer, save_pipeline
from gpo_train.module import GPOModule

RECIPE = """
model: {model}
lake: {lake}
group_size: 4
groups_per_shard: 2
task: {{kind: text, num_prompts: 6}}
sampler:
  {{num_inference_steps: 2, guidance_scale: 2.0, height: 64, width: 64, max_sequence_length: 1, batch_size: 6,
   dtype: float32, device: cpu}}
evaluators: [ocr]
ocr: {{mode: recognition}}
reward: 0.5 + 0.5 * text_edit(target, ocr_text) - 0.5 * dark_fraction
"""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Inside, training dies before the optimiser step of that number."""
    train = GPOModule.training_step

    def killed(self: GPOModule, batch: Any, index: int) -> None:
        if self.global_step == step:
            raise ValueError("killed")
        train(self, batch, index)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="killed"):
        patch.setattr(GPOModule, "training_step", killed)
        yield


@pytest.fixture(scope="session")
def random_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with random weights, built from config."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.9,
        shift_factor=0.1,
    )
    folder = tmp_path_factory.mktemp("random-sd3")
    encoders = torch.nn.ModuleList([new_text_encoder(tokenizer) for _ in range(2)])
    save_pipeline(folder, vae, new_transformer(), encoders, tokenizer)
    return folder


@pytest.fixture
def recipe_file(tmp_path: Path, random_sd3: Path) -> Path:
    """A recipe of 6 groups of 4 in 3 shards, with a lake of its own."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(model=random_sd3, lake=tmp_path / "lake"))
    return path

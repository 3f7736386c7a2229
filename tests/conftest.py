"""Small real parts: a StableDiffusion3Pipeline with random weights and a recipe that draws with it in a moment."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import loky
import pytest

# torch and what needs it are imported where they are used: the process that hands tests to the workers needs neither.
# Read when torch loads: networks this small gain nothing from a second thread, and the workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

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

TRAIN = """
train: {tuning: full, timesteps_per_image: 2, num_inner_epochs: 1, epochs: 2, groups_per_step: 2, learning_rate: 1.0e-4,
        precision: float32,
        checkpoint_steps: 1, loggers: [csv], trainer: {enable_progress_bar: false}}
eval: {prompts: 2, group_size: 2}
"""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Of `-n auto`: each worker imports torch, PaddleOCR and ultralytics for itself, so that many gain little."""
    return min(4, loky.cpu_count())


@pytest.fixture(scope="session", autouse=True)
def models_load_once() -> Iterator[None]:
    """Evaluators with the same settings share their OCR model and their detector, as they would in one recipe."""
    from gpo_data.evaluators import ocr, ocr_models, yolo

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocr_models, "model_name", functools.cache(ocr_models.model_name))
        for module in (ocr, yolo):
            patch.setattr(module, "load", functools.cache(module.load))
        yield


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Inside, training dies before the optimiser step of that number."""
    from gpo_train.module import GPOModule

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
    return save_random_sd3(tmp_path_factory.mktemp("random-sd3"))


def save_random_sd3(folder: Path, latent_channels: int = 16) -> Path:
    import torch
    from diffusers import AutoencoderKL

    from gpo_data.tiny.pipeline import new_text_encoder, new_tokenizer, new_transformer, save_pipeline

    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latent_channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.9,
        shift_factor=0.1,
    )
    transformer = new_transformer(layers=2, heads=2)
    if latent_channels != 16:
        shape = {"in_channels": latent_channels, "out_channels": latent_channels}
        transformer = type(transformer).from_config(transformer.config | shape)
    encoders = torch.nn.ModuleList([new_text_encoder(tokenizer) for _ in range(2)])
    save_pipeline(folder, vae, transformer, encoders, tokenizer)
    return folder


@pytest.fixture
def recipe_file(tmp_path: Path, random_sd3: Path) -> Path:
    """A recipe of 6 groups of 4 in 3 shards, with a lake of its own."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(model=random_sd3, lake=tmp_path / "lake"))
    return path


@pytest.fixture(scope="session")
def drawn_lake(tmp_path_factory: pytest.TempPathFactory, random_sd3: Path) -> Path:
    """A lake with the dataset of `recipe_file`, drawn once; a test that changes it takes a copy."""
    return lake_drawn(tmp_path_factory.mktemp("drawn"), random_sd3)


@pytest.fixture
def own_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'gpo[ray]'")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):  # that the command sets go with the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def here(drawn_lake: Path, tmp_path: Path, random_sd3: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe file whose dataset is drawn, with the lake and runs/ in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return recipe_beside(shutil.copytree(drawn_lake, tmp_path / "lake"), random_sd3)


def lake_drawn(folder: Path, model: Path, overrides: Sequence[str] = ()) -> Path:
    """The lake in `folder` with the dataset of RECIPE."""
    from rich.console import Console

    from gpo_data import recipe
    from gpo_data.generation.generate import draw

    path = folder / "small.yaml"
    path.write_text(RECIPE.format(model=model, lake=folder / "lake"))
    return draw(recipe.load(path, overrides), Console(quiet=True)).parent


def recipe_beside(lake: Path, model: Path) -> Path:
    """A recipe file to train with, beside its lake."""
    path = lake.parent / "small.yaml"
    path.write_text(RECIPE.format(model=model, lake=lake) + TRAIN)
    return path

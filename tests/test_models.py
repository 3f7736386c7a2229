"""Parity: what the pipeline feeds its denoiser, `predict` reproduces exactly; `noise` likewise, `decode` nearly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gpo_data import models
from gpo_data.errors import UsageError
from gpo_data.recipe import Sampler
from tests.parts.families import assert_same_pictures

SAMPLER = Sampler(
    num_inference_steps=3, guidance_scale=1.0, height=64, width=64, max_sequence_length=1, dtype="float32", device="cpu"
)


def test_predict_reproduces_the_pipelines_calls(random_sd3: Path) -> None:
    model = models.load(random_sd3, SAMPLER)
    calls = []
    model.pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output[0].clone())), with_kwargs=True
    )
    conditioning = model.encode(['a red sign that says "AB"', 'a blue sign that says "CD"'])
    latents = model.draw(conditioning, [1, 2])
    assert len(calls) == 3
    for kwargs, output in list(calls):
        with torch.inference_mode():
            again = model.predict(kwargs["hidden_states"], kwargs["timestep"] / 1000, conditioning)
        assert torch.equal(again, output)
    picture = model.decode(latents)[0]
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8


def test_noise_is_the_schedulers(random_sd3: Path) -> None:
    model = models.load(random_sd3, SAMPLER)
    scheduler = model.pipe.scheduler
    scheduler.set_timesteps(4)
    x_0, e = torch.randn(2, 4, 16, 8, 8)
    for index, timestep in enumerate(scheduler.timesteps):
        t = scheduler.sigmas[index].expand(4)
        assert torch.equal(model.noise(x_0, e, t), scheduler.scale_noise(x_0, timestep.expand(4), e))


def test_decode_is_the_pipelines(random_sd3: Path) -> None:
    model = models.load(random_sd3, SAMPLER)
    generator = [torch.Generator().manual_seed(s) for s in (1, 2)]
    common = {"num_inference_steps": 3, "guidance_scale": 1.0, "max_sequence_length": 1, "height": 64, "width": 64}
    whole = model.pipe(["one red circle"] * 2, generator=generator, output_type="np", **common).images
    latents = model.draw(models.repeat(model.encode(["one red circle"]), [2]), [1, 2])
    assert_same_pictures(model.decode(latents), whole)


def test_what_cannot_be_loaded_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"expected .*model_index\.json, found no such file"):
        models.resolve(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "OtherPipeline"}))
    with pytest.raises(UsageError, match="OtherPipeline is not supported; known: StableDiffusion3Pipeline"):
        models.load(tmp_path, SAMPLER)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="hf download nobody/nothing"):
        models.resolve("nobody/nothing")

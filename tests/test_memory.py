"""What saves memory changes no picture; training has the denoiser alone; options that are not there say what is."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from gpo_data import models, recipe
from gpo_data.errors import UsageError
from gpo_data.recipe import Sampler, Train
from gpo_data.recipe.recipe import PLACES, SINCE
from gpo_train.policy import Policy
from tests.parts.families import FAMILIES, PROMPTS, SAMPLER, Family, build

RECIPES = Path(__file__).parents[1] / "recipes"
# As recorded before the first of the options in SINCE was there.
FINGERPRINTS = {"text-tiny": "8a5582892da7058e", "text-sd35m": "ac410bd2db467193", "text-flux-dev": "e9d556dd9ff13378"}
CHANGES = {"text_encoder_8bit": True, "vae_slicing": True, "vae_tiling": True, "attention_backend": "_native_math"}
CHANGES |= {"store_unconditional": True}


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build("flux-dev", tmp_path_factory.mktemp("flux-dev"))


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build("sdxl", tmp_path_factory.mktemp("sdxl"))


def for_training(family: Family) -> Any:
    return models.load(family.folder, dataclasses.replace(SAMPLER, **family.settings), for_training=True)


def test_fingerprints_are_those_of_before(tmp_path: Path) -> None:
    for name, before in FINGERPRINTS.items():
        made = recipe.load(RECIPES / f"{name}.yaml", ["--sampler.dtype", "bfloat16"])  # `auto` is the machine's
        assert made.fingerprint() == before
        elsewhere = dataclasses.replace(made.sampler, device="cpu", text_encoders="cpu")
        assert dataclasses.replace(made, sampler=elsewhere).fingerprint() == before
        assert CHANGES.keys() == set(SINCE)
        for key, value in CHANGES.items():
            changed = dataclasses.replace(made.sampler, text_encoders="device", **{key: value})
            assert dataclasses.replace(made, sampler=changed).fingerprint() != before
    assert {f.name for f in dataclasses.fields(Sampler)} >= {*SINCE, *PLACES}


def test_training_loads_the_denoiser_alone_and_asks_it_the_same(family: Family) -> None:
    whole, alone = family.model(), for_training(family)
    networks = [part for part in alone.pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(networks) == 1 and networks[0] is alone.denoiser
    conditioning = {k: v.clone() for k, v in whole.encode(PROMPTS).items()}
    x_0, e = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = whole.time(torch.tensor([0.3, 0.7]))
    assert torch.equal(alone.time(torch.tensor([0.3, 0.7])), t)
    x_t = whole.noise(x_0, e, t)
    assert torch.equal(alone.noise(x_0, e, t), x_t) and torch.equal(alone.target(x_0, e, t), whole.target(x_0, e, t))
    with torch.no_grad():
        family.assert_same(alone.predict(x_t, t, conditioning), whole.predict(x_t, t, conditioning))
    with pytest.raises(RuntimeError, match="loaded for training, without text encoders"):
        alone.encode(PROMPTS)


def test_a_denoiser_alone_adopts_a_lora(family: Family, tmp_path: Path) -> None:
    whole = family.model()
    adapter = LoraConfig(r=2, lora_alpha=2, target_modules=list(whole.lora_targets), init_lora_weights=False)
    whole.denoiser.add_adapter(adapter)
    layers = {f"{whole.denoiser_name}_lora_layers": get_peft_model_state_dict(whole.denoiser)}
    whole.pipe.save_lora_weights(tmp_path, **layers)
    alone = for_training(family)
    models.load_policy_weights(alone, tmp_path)
    models.load_policy_weights(alone, tmp_path)  # again, as every iteration of online mode does
    assert len(alone.denoiser.peft_config) == 1
    learnt = get_peft_model_state_dict(alone.denoiser, adapter_name=next(iter(alone.denoiser.peft_config)))
    assert learnt and all(torch.equal(learnt[k], v) for k, v in get_peft_model_state_dict(whole.denoiser).items())
    with pytest.raises(UsageError, match=r"policy: expected whole weights to train on, found a LoRA; merge it"):
        Policy(alone, Train())


@pytest.mark.parametrize("where", ["offload", "cpu"])
def test_where_the_text_encoders_are_changes_nothing(family: Family, where: str) -> None:
    beside, away = family.model(), family.model(text_encoders=where)
    assert all(torch.equal(away.encode(PROMPTS)[k], v) for k, v in beside.encode(PROMPTS).items())
    drawn = [model.draw(model.encode(PROMPTS), [1, 2]) for model in (beside, away)]
    assert torch.equal(*drawn)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_text_encoders_leave_the_device(flux: Family) -> None:
    model = flux.model(device="cuda", text_encoders="offload")
    encoders = [model.pipe.text_encoder, model.pipe.text_encoder_2]
    with model.encoding() as device:
        assert device.type == "cuda" and all(encoder.device.type == "cuda" for encoder in encoders)
    assert all(encoder.device.type == "cpu" for encoder in encoders) and model.pipe.device.type == "cuda"


def test_a_slice_decodes_what_the_batch_does_and_tiles_nearly(flux: Family) -> None:
    whole, sliced, tiled = flux.model(), flux.model(vae_slicing=True), flux.model(vae_tiling=True)
    assert sliced.pipe.vae.use_slicing and tiled.pipe.vae.use_tiling and not whole.pipe.vae.use_slicing
    latents = whole.draw(whole.encode(PROMPTS), [1, 2])
    one, two, three = (np.stack(model.decode(latents)).astype(int) for model in (whole, sliced, tiled))
    assert abs(one - two).max() <= 1  # rounding
    assert one.shape == three.shape and 0 < abs(one - three).mean() < 64  # tiles of 32 pixels; random weights


def test_attention_backends(flux: Family, sdxl: Family) -> None:
    with attention_backend(AttentionBackendName.NATIVE):  # diffusers also sets it for the process; this puts it back
        plain, math = flux.model(), flux.model(attention_backend="_native_math")
        processors = [p for part in math.denoiser.modules() if (p := getattr(part, "processor", None)) is not None]
        assert processors and all(p._attention_backend == AttentionBackendName._NATIVE_MATH for p in processors)
        drawn = [model.draw(model.encode(PROMPTS), [1, 2]) for model in (plain, math)]
        torch.testing.assert_close(*drawn, rtol=1e-3, atol=1e-3)
        trained = models.load(flux.folder, dataclasses.replace(SAMPLER, attention_backend="_native_math"), True)
        assert any(
            getattr(getattr(p, "processor", None), "_attention_backend", None) for p in trained.denoiser.modules()
        )
    with pytest.raises(UsageError, match=r"attention_backend: expected null or any of _flash_3, .*found 'flush'"):
        flux.model(attention_backend="flush")
    with pytest.raises(UsageError, match="attention_backend: sage: has no backward pass; it draws, and cannot train"):
        models.load(flux.folder, dataclasses.replace(SAMPLER, attention_backend="sage"), True)
    with pytest.raises(UsageError, match="UNet2DConditionModel takes none in diffusers .* set null"):
        sdxl.model(attention_backend="native")


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is installed")
def test_a_backend_whose_package_is_missing_says_which(flux: Family) -> None:
    with pytest.raises(UsageError, match=r"attention_backend: xformers: .*install `xformers"):
        flux.model(attention_backend="xformers")


def test_eight_bits(flux: Family, sdxl: Family) -> None:
    with pytest.raises(UsageError, match="has only CLIP text encoders"):
        sdxl.model(text_encoder_8bit=True)
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(UsageError, match="pip install bitsandbytes.*or set it to false"):
            flux.model(text_encoder_8bit=True)
        return
    whole, small = flux.model(), flux.model(text_encoder_8bit=True)
    assert any(p.dtype == torch.int8 for p in small.pipe.text_encoder_2.parameters())
    assert all(p.dtype == torch.float32 for p in small.pipe.text_encoder.parameters())
    found, wanted = small.encode(PROMPTS)["prompt_embeds"], whole.encode(PROMPTS)["prompt_embeds"]
    torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.1)
    assert torch.isfinite(small.draw(small.encode(PROMPTS), [1, 2])).all()

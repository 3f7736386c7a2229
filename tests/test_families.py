"""Every family against the real diffusers pipeline it wraps: tiny random weights, equality to the last bit where the
arithmetic is the same.

What is compared is what the plain pipeline, opened by diffusers alone and called with the prompt's text, feeds its
denoiser and returns.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from rich.console import Console

from gpo_data import models, recipe
from gpo_data.errors import UsageError
from gpo_data.generation import generate as draw
from gpo_data.lake import catalog
from gpo_data.lake.reader import Reader, TrainGroup
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.lake.verify import verify
from gpo_data.recipe import Train
from gpo_train.noise import distribution, sample_noise
from gpo_train.policy import Policy
from gpo_train.snapshot import _same_model
from tests.parts.families import (
    FAMILIES,
    PLAIN,
    PROMPTS,
    SAMPLER,
    Family,
    assert_same_pictures,
    build,
    new_sana,
    new_sd,
    save,
)


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build(request.param, tmp_path_factory.mktemp(request.param))


def recorded(denoiser: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The list that will hold (input, timestep, output) of every call."""
    calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def record(module: torch.nn.Module, args: tuple, kwargs: dict, output: tuple) -> None:
        x_t, t = [*args, *(kwargs[k] for k in ("hidden_states", "timestep") if k in kwargs)]
        if isinstance(module, SanaTransformer2DModel | SD3Transformer2DModel):
            t = t.double() / 1000
        calls.append((x_t, t, output[0].clone()))

    denoiser.register_forward_hook(record, with_kwargs=True)
    return calls


def test_predict_reproduces_the_pipelines_calls(family: Family) -> None:
    model, plain = family.model(guidance_scale=1.0), family.plain()
    calls = recorded(getattr(plain, model.denoiser_name))
    family.call(plain, "latent", guidance_scale=1.0)
    conditioning = model.encode(PROMPTS)
    assert len(calls) >= 2
    for x_t, t, output in calls:
        with torch.inference_mode():
            said = model.predict(model.unpack(x_t), t.expand(2), conditioning)
        assert said.shape == (2, 4, 8, 8)
        family.assert_same(said, model.unpack(output))


def test_both_halves_of_guidance_are_what_predict_gives(family: Family) -> None:
    model, plain = family.model(), family.plain()
    calls = recorded(getattr(plain, model.denoiser_name))
    family.call(plain, "latent")
    conditioning = model.encode(PROMPTS)
    halves = [(slice(-2, None), conditioning)]
    if model.has_unconditional:  # the first of the two
        without = {name: value.expand(2, *value.shape) for name, value in model.unconditional().items()}
        halves.append((slice(0, 2), conditioning | without))
    for x_t, t, output in calls:
        assert len(output) == 2 * len(halves)
        for half, told in halves:
            with torch.inference_mode():
                said = model.predict(model.unpack(x_t[half]), t.expand(len(x_t))[half], told)
            torch.testing.assert_close(said, model.unpack(output[half]), rtol=1e-4, atol=1e-5)


def test_draws_and_decodes_what_the_plain_pipeline_does(family: Family) -> None:
    plain, steps = family.plain(), []
    model = family.model(guidance_scale=1.0)
    latents = model.draw(model.encode(PROMPTS), [1, 2], lambda: steps.append(1))
    assert latents.shape == (2, 4, 8, 8) and len(steps) >= 2
    theirs = model.unpack(family.call(plain, "latent", guidance_scale=1.0))
    family.assert_same(latents, theirs)
    assert_same_pictures(model.decode(theirs), family.call(plain, "np", guidance_scale=1.0))


def test_pictures_are_encoded_as_the_autoencoder_does_and_decode_undoes_it(family: Family) -> None:
    model, plain = family.model(), family.plain()
    images = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in (1, 2)]
    latents = model.encode_images(images)
    assert latents.shape == (2, 4, 8, 8)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        encoded = plain.vae.encode(pixels)
        own = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
        back = plain.vae.decode(own, return_dict=False)[0]
    assert_same_pictures(model.decode(latents), plain.image_processor.postprocess(back, output_type="np"))


def test_guidance_draws_what_the_plain_pipelines_does(family: Family) -> None:
    model = family.model()
    latents = model.draw(model.encode(PROMPTS), [1, 2])
    theirs = model.unpack(family.call(family.plain(), "latent"))
    # The negative prompt is encoded once here, and once a picture over there, which may round another way.
    torch.testing.assert_close(latents, theirs, rtol=0, atol=1e-5)


def test_sizes_are_those_that_the_denoiser_draws(family: Family) -> None:
    with pytest.raises(UsageError, match=r"sampler\.height: expected a multiple of \d+.* found 63") as refused:
        models.expect_size(family.folder, dataclasses.replace(SAMPLER, height=63))
    step = int(re.search(r"multiple of (\d+)", str(refused.value))[1])
    models.expect_size(family.folder, dataclasses.replace(SAMPLER, height=64 - step))
    model = family.model(guidance_scale=1.0, height=64 - step)
    assert {image.shape for image in model.decode(model.draw(model.encode(PROMPTS), [1, 2]))} == {(64 - step, 64, 3)}


def test_starting_noise_is_what_drawing_starts_from(family: Family) -> None:
    model = family.model(guidance_scale=1.0)
    calls = recorded(model.denoiser)
    latents = model.draw(model.encode(PROMPTS), [1, 2])
    first = model.unpack(calls[0][0]).float()
    noise = model.starting_noise((1, 2), tuple(latents.shape[1:]), torch.float32)
    scale = (first * noise).sum() / (noise * noise).sum()  # the scheduler's own, of its first sigma
    torch.testing.assert_close(first, scale * noise, rtol=1e-5, atol=1e-5)


def test_a_member_does_not_depend_on_its_companions(family: Family) -> None:
    model = family.model()
    conditioning = model.encode(PROMPTS)
    both = model.draw(conditioning, [1, 2])
    alone = model.draw({k: v[1:] for k, v in conditioning.items()}, [2])
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


def test_noise_and_target_are_the_schedulers(family: Family) -> None:
    model, scheduler = family.model(), family.plain().scheduler
    x_0, e = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    if family.flow:
        if family.name == "sana":  # a DPM-Solver: another name, another order
            scheduler.set_timesteps(3)
            added = scheduler.add_noise(x_0, e, scheduler.timesteps)
        else:
            scheduler.set_timesteps(3, mu=0.7)
            added = scheduler.scale_noise(x_0, scheduler.timesteps, e)
        t = scheduler.sigmas[:3]
        assert torch.equal(model.noise(x_0, e, t), added)
        assert torch.equal(model.target(x_0, e, t), e - x_0)
        return
    t = torch.tensor([0, 500, 999])
    x_t, y = model.noise(x_0, e, t), model.target(x_0, e, t)
    trained = DDPMScheduler.from_pretrained(family.folder, subfolder="scheduler")
    assert torch.equal(x_t, trained.add_noise(x_0, e, t))
    if family.name == "sdxl":  # Euler samples in x_0 + sigma e, and scales that before the UNet sees it
        scheduler.set_timesteps(3)
        for step in scheduler.timesteps:
            t = step.long().expand(3)
            added = scheduler.add_noise(x_0, e, step.expand(3))
            scheduler._step_index = None  # asked anew at every timestep
            torch.testing.assert_close(model.noise(x_0, e, t), scheduler.scale_model_input(added, step))
    else:
        assert torch.equal(x_t, scheduler.add_noise(x_0, e, t))
    assert torch.equal(y, scheduler.get_velocity(x_0, e, t) if family.name == "sd-v" else e)


def test_time_is_the_schedulers(family: Family) -> None:
    model = family.model()
    if family.flow:
        plain = family.plain()
        family.call(plain, "latent")  # the pipeline sets the dynamic shift
        # The first two of two steps: evenly spaced, but SD3's own go down to the least sigma there is.
        u = {"sana": [0.999, 0.4995], "sd3": [1.0, getattr(plain.scheduler, "sigma_min", 0.0)]}.get(
            family.name, [1.0, 0.5]
        )
        torch.testing.assert_close(model.time(torch.tensor(u)), plain.scheduler.sigmas[:2])
        if family.name in ("sd3", "flux-dev"):  # what diffusers' training scripts draw indices into
            trained = type(plain.scheduler).from_config(plain.scheduler.config)
            grid = torch.arange(1000, 0, -1) / 1000
            torch.testing.assert_close(model.time(grid, family.name == "sd3"), trained.sigmas[:1000])
        return
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert torch.equal(model.time(u), torch.arange(1000))
    assert model.time(torch.tensor([0.0, 1.0])).tolist() == [0, 999]
    discrete = distribution(Train(timestep_distribution="discrete"), model.whole_steps)
    counted = torch.bincount(model.time(discrete(200_000, torch.Generator().manual_seed(0))), minlength=1000)
    assert len(counted) == 1000 and counted.min() > 120 and counted.max() < 280  # 200 each


def test_adapters_reach_attention_and_mlp_and_learn(family: Family, tmp_path: Path) -> None:
    model = family.model()
    model.denoiser.requires_grad_(False)
    linear = {name for name, part in model.denoiser.named_modules() if isinstance(part, torch.nn.Linear)}
    wanted = {n for n in linear if re.search(r"\.(attn\d?|ff|ff_context)\.|\.proj_mlp$|single.*\.proj_out$", n)}
    model.denoiser.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=list(model.lora_targets)))
    adapted = {n.removesuffix(".lora_A") for n, _ in model.denoiser.named_modules() if n.endswith(".lora_A")}
    assert adapted == wanted and wanted
    conditioning = {k: v.clone() for k, v in model.encode(PROMPTS).items()}  # stored: no longer inference tensors
    x_0, e = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = model.time(torch.tensor([0.3, 0.7]))
    x_t = model.noise(x_0, e, t)
    loss = ((model.target(x_0, e, t) - model.predict(x_t, t, conditioning)) ** 2).mean()
    loss.backward()
    trained = {name: p for name, p in model.denoiser.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in trained)
    unheard = ".1.attn.add_q_proj." if family.name == "sd3" else " "  # the last block drops what the text asks for
    for name, parameter in trained.items():
        if unheard not in name and ".lora_A" not in name:  # A waits for B, which starts at 0
            assert parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        for parameter in trained.values():
            parameter.normal_(std=0.3)
    layers = {f"{model.denoiser_name}_lora_layers": get_peft_model_state_dict(model.denoiser)}
    model.pipe.save_lora_weights(tmp_path, **layers)
    again = family.model()
    base = again.predict(x_t, t, conditioning)
    again.pipe.load_lora_weights(tmp_path)
    assert torch.equal(again.predict(x_t, t, conditioning), model.predict(x_t, t, conditioning))
    assert not torch.allclose(again.predict(x_t, t, conditioning), base)


def test_a_dataset_is_drawn_and_verified(family: Family, tmp_path: Path) -> None:
    settings = {**dataclasses.asdict(SAMPLER), **family.settings, "batch_size": 4}
    settings["store_unconditional"] = not family.name.startswith("flux")
    made = {
        "model": str(family.folder),
        "lake": str(tmp_path / "lake"),
        "group_size": 3,
        "groups_per_shard": 2,
        "task": {"kind": "text", "num_prompts": 3},
        "sampler": settings,
        "evaluators": ["ocr"],
        "ocr": {"mode": "recognition"},
        "reward": "text_edit(target, ocr_text)",
    }
    path = tmp_path / f"{family.name}.yaml"
    path.write_text(json.dumps(made))  # JSON is YAML
    folder = draw.draw(recipe.load(path), Console(quiet=True))
    report = verify(folder)
    assert (report.shards, report.groups, report.members, report.failed, report.problems) == (2, 3, 9, 0, [])
    for key in models.told(family.folder):  # else the policy would learn at what it was not told when it drew
        other = recipe.load(path, [f"--sampler.{key}", str(2 * settings[key])])
        here = {"model_digest": models.digest(family.folder)}
        _same_model(recipe.load(path), family.name, here)
        with pytest.raises(UsageError, match=f"was drawn with sampler.{key}: {settings[key]}, .* in training too"):
            _same_model(other, family.name, here)

    if not settings["store_unconditional"]:
        with pytest.raises(UsageError, match=r"sampler.store_unconditional: the model in .* has no unconditional half"):
            draw.draw(recipe.load(path, ["--sampler.store_unconditional", "true", "--name", "b"]), Console(quiet=True))
        assert not (tmp_path / "lake" / "dataset=b").exists()
        return
    table = take_snapshot(catalog.connect(str(tmp_path / "lake")), family.name, keep_dead=True)
    group = Reader(str(tmp_path / "lake"), table, unconditional=["train.guidance_scale"])[1]
    guidance_is_trained_as_it_is_drawn(family, group)


def guidance_is_trained_as_it_is_drawn(family: Family, group: TrainGroup) -> None:
    """The policy predicts what the pipeline draws with: f of the negative prompt, and w times what the prompt adds."""
    sampler = dataclasses.replace(SAMPLER, **family.settings)
    policy = Policy(
        models.load(family.folder, sampler, for_training=True),
        Train(tuning="full", reference="frozen", guidance_scale=4.0, precision="float32"),
    )
    noise = sample_noise(group, 2, seed=1)
    noise = dataclasses.replace(noise, dropped=torch.tensor([False, True]))
    found = policy.errors(group, noise).view(2, 3)
    model = family.model()
    x_0, prompted = group.latents, {name: value.expand(3, *value.shape) for name, value in group.conditioning.items()}
    without = prompted | {name: value.expand(3, *value.shape) for name, value in model.unconditional().items()}
    for j, w in enumerate((4.0, 0.0)):
        t = model.time(noise.u[j])
        x_t, y = model.noise(x_0, noise.e[j], t), model.target(x_0, noise.e[j], t)
        with torch.inference_mode():
            plain, far = (model.predict(x_t, t, one) for one in (without, prompted))
        error = ((y - plain - w * (far - plain)) ** 2).flatten(1).mean(1)
        torch.testing.assert_close(found[j].detach(), error, rtol=1e-4, atol=1e-5)


def test_settings_that_a_family_has_no_use_for_are_refused(family: Family) -> None:
    if family.name.startswith("flux"):
        with pytest.raises(UsageError, match=r"sampler\.negative_prompt: expected an empty one, found 'blurry'"):
            family.model(negative_prompt="blurry")
        with pytest.raises(UsageError, match=r"sampler\.width: expected a multiple of 16, found 72"):
            family.model(width=72)
    elif not family.flow:
        with pytest.raises(UsageError, match=r"sampler\.max_sequence_length: expected null, found 77"):
            family.model(max_sequence_length=77)


@pytest.mark.parametrize(
    ("scheduler", "config", "message"),
    [
        (diffusers.EDMEulerScheduler(), {}, "scheduler EDMEulerScheduler with prediction_type epsilon: expected one"),
        (
            DDIMScheduler(prediction_type="sample", **PLAIN),
            {},
            "DDIMScheduler with prediction_type sample: expected .* epsilon",
        ),
        (
            DDIMScheduler(**PLAIN),
            {"time_cond_proj_dim": 8},
            r"a UNet distilled for few steps .* \(LCM\) is not supported",
        ),
    ],
)
def test_what_was_trained_on_another_process_is_refused(
    scheduler: Any, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(new_sd(scheduler, **config), tmp_path)
    with pytest.raises(UsageError, match=message):
        models.load(tmp_path, SAMPLER)


def test_a_dynamic_shift_is_not_trained_at_another(tmp_path: Path) -> None:
    made = build("sd3", tmp_path)
    config = made.folder / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dynamic_shifting": True}))
    models.load(made.folder, dataclasses.replace(SAMPLER, **made.settings))
    with pytest.raises(UsageError, match="scheduler: use_dynamic_shifting: training asks SD3 at noise levels"):
        models.load(made.folder, dataclasses.replace(SAMPLER, **made.settings), True)


def test_a_flow_with_a_scheduler_of_another_process_is_refused(tmp_path: Path) -> None:
    pipe = new_sana()
    pipe.scheduler = DPMSolverMultistepScheduler()
    save(pipe, tmp_path)
    with pytest.raises(UsageError, match="scheduler DPMSolverMultistepScheduler: expected one of rectified flow"):
        models.load(tmp_path, SAMPLER)

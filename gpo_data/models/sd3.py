"""Stable Diffusion 3 and 3.5: rectified flow on an SD3Transformer2DModel.

    x_t = (1 - t) x_0 + t e,   the transformer predicts e - x_0 and is told 1000 t

Drawing goes through the pipeline's own `__call__`, with one CPU generator a member, so a member is what anybody gets
from `pipe(prompt, generator=torch.Generator().manual_seed(seed))`. Conditioning is `prompt_embeds` [B, L, D] and
`pooled_prompt_embeds` [B, P]; the unconditional half is encoded once from `negative_prompt`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers import StableDiffusion3Pipeline

from gpo_data.models import Conditioning, device_of
from gpo_data.recipe import Sampler

# A folder may hold another tokenizer class than the signature's; diffusers says so at every load.
logging.getLogger("diffusers.pipelines.pipeline_utils").setLevel(logging.ERROR)
# The caller says that it loads; bars of a millisecond each are noise.
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


class SD3:
    # Attention and MLP of both streams; the names diffusers' own SD3 LoRA training uses, plus the MLPs.
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
                    "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")  # fmt: skip

    def __init__(self, folder: Path, sampler: Sampler) -> None:
        self.sampler = sampler
        self.device = torch.device(device_of(sampler))
        self.dtype: torch.dtype = getattr(torch, sampler.dtype)
        self.pipe = StableDiffusion3Pipeline.from_pretrained(folder, dtype=self.dtype).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        if sampler.compile:
            self.pipe.transformer.compile()
        self._negative: Conditioning | None = None

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> Conditioning:
        length = self.sampler.max_sequence_length
        extra = {} if length is None else {"max_sequence_length": length}
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompts, prompts, prompts, device=self.device, do_classifier_free_guidance=False, **extra
        )
        return {"prompt_embeds": embeds.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    @torch.inference_mode()
    def draw(
        self, conditioning: Conditioning, seeds: list[int], on_step: Callable[[], None] | None = None
    ) -> torch.Tensor:
        if self._negative is None:
            self._negative = self.encode([self.sampler.negative_prompt])
        embeds = {k: v.to(self.device) for k, v in conditioning.items()}
        if self.sampler.guidance_scale > 1:
            negative = {f"negative_{k}": v.to(self.device) for k, v in self._negative.items()}
            embeds |= {k: v.expand(len(seeds), *v.shape[1:]) for k, v in negative.items()}

        def step_end(pipe: object, step: int, timestep: object, tensors: dict) -> dict:
            if on_step:
                on_step()
            return tensors

        output = self.pipe(
            **embeds,
            height=self.sampler.height,
            width=self.sampler.width,
            num_inference_steps=self.sampler.num_inference_steps,
            guidance_scale=self.sampler.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="latent",
            callback_on_step_end=step_end,
            callback_on_step_end_tensor_inputs=[],
        )
        return output.images.cpu()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> list[np.ndarray]:
        vae = self.pipe.vae
        latents = latents.to(self.device, self.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        images = vae.decode(latents, return_dict=False)[0]
        pictures = self.pipe.image_processor.postprocess(images.float(), output_type="np")
        return list((pictures * 255).round().astype(np.uint8))

    def noise(self, x_0: torch.Tensor, e: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t for t [B] in [0, 1]; the interpolation of FlowMatchEulerDiscreteScheduler.scale_noise."""
        t = t.view(-1, *[1] * (x_0.ndim - 1)).to(x_0.dtype)
        return t * e + (1.0 - t) * x_0

    def target(self, x_0: torch.Tensor, e: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return e - x_0

    def time(self, u: torch.Tensor) -> torch.Tensor:
        """shift u / (1 + (shift - 1) u), as FlowMatchEulerDiscreteScheduler shifts its sigmas."""
        shift = self.pipe.scheduler.config.shift
        return shift * u / (1 + (shift - 1) * u)

    @property
    def denoiser(self) -> torch.nn.Module:
        return self.pipe.transformer

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, denoiser: torch.nn.Module | None = None
    ) -> torch.Tensor:
        """The velocity e - x_0 at t [B] in [0, 1], by `denoiser` or the pipeline's own."""
        return (denoiser or self.pipe.transformer)(
            hidden_states=x_t,
            timestep=t * self.pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"],
            pooled_projections=conditioning["pooled_prompt_embeds"],
            return_dict=False,
        )[0]

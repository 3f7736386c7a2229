"""FLUX.1: rectified flow on a FluxTransformer2DModel, with guidance as an input where the model is distilled for it.

The transformer reads patches: latents [B, C, h, w] packed to [B, (h/2)(w/2), 4 C]. Latents are stored and noised
unpacked, and are packed only on the way into the transformer and unpacked on the way out; the packing moves numbers
and changes none, so the forward process is the same on either side.

Conditioning is `prompt_embeds` [B, L, D] of T5 and `pooled_prompt_embeds` [B, P] of CLIP. The position ids follow from
the shapes. `guidance_scale` is the recipe's: what the policy is told in training is what it was told when it drew.
There is no second, unconditional call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from gpo_data.errors import UsageError
from gpo_data.models import Conditioning
from gpo_data.models.flow import JOINT_BLOCK, Flow
from gpo_data.recipe import Sampler


def lora_targets(single_layers: int) -> tuple[str, ...]:
    """Attention and MLP of both kinds of block.

    A single block's `proj_out` is named in full, because the bare name is also the transformer's last projection.
    """
    return (
        *JOINT_BLOCK,
        "proj_mlp",
        *(f"single_transformer_blocks.{i}.proj_out" for i in range(single_layers)),
    )


class Flux(Flow):
    pipeline_class = FluxPipeline
    told = ("height", "width", "guidance_scale")
    multiple_of = 16
    large_text_encoder = "text_encoder_2"
    has_unconditional = False

    def __init__(self, folder: Path, sampler: Sampler, for_training: bool = False) -> None:
        if sampler.negative_prompt:
            raise UsageError(
                f"sampler.negative_prompt: expected an empty one, found {sampler.negative_prompt!r}: "
                f"FLUX takes guidance as an input and has no unconditional half to steer away from"
            )
        super().__init__(folder, sampler, for_training)
        pixels = 2 * self.pipe.vae_scale_factor
        for key in ("height", "width"):
            if getattr(sampler, key) % pixels:  # the pipeline would round it down
                raise UsageError(f"sampler.{key}: expected a multiple of {pixels}, found {getattr(sampler, key)}")
        self.lora_targets = lora_targets(self.pipe.transformer.config.num_single_layers)

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> Conditioning:
        length = self.sampler.max_sequence_length
        extra = {} if length is None else {"max_sequence_length": length}
        with self.encoding() as device:
            embeds, pooled, _ = self.pipe.encode_prompt(prompts, device=device, **extra)
        return {"prompt_embeds": embeds.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    def call_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        return dict(conditioning)

    def unpack(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, (h/2)(w/2), 4 C] -> [B, C, h, w]"""
        sampler = self.sampler
        return self._unpack(latents, sampler.height, sampler.width)

    def time(self, u: torch.Tensor, shifted: bool = True) -> torch.Tensor:
        """The scheduler's shift of its sigmas; a dynamic one grows with the number of patches in the picture."""
        scheduler = self.pipe.scheduler
        if not (shifted and scheduler.config.use_dynamic_shifting):
            return super().time(u, shifted)
        pixels = 2 * self.pipe.vae_scale_factor
        mu = calculate_shift(
            (self.sampler.height // pixels) * (self.sampler.width // pixels),
            scheduler.config.base_image_seq_len,
            scheduler.config.max_image_seq_len,
            scheduler.config.base_shift,
            scheduler.config.max_shift,
        )
        t: torch.Tensor = scheduler.time_shift(mu, 1.0, u)
        return t

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, denoiser: torch.nn.Module | None = None
    ) -> torch.Tensor:
        """The velocity e - x_0 at t [B] in [0, 1], by `denoiser` or the pipeline's own."""
        batch, channels, height, width = x_t.shape
        embeds, guidance = conditioning["prompt_embeds"], None
        if self.pipe.transformer.config.guidance_embeds:
            guidance = torch.full([batch], self.sampler.guidance_scale, device=x_t.device, dtype=torch.float32)
        packed = (denoiser or self.pipe.transformer)(
            hidden_states=self.pipe._pack_latents(x_t.contiguous(), batch, channels, height, width),
            timestep=t,
            guidance=guidance,
            pooled_projections=conditioning["pooled_prompt_embeds"],
            encoder_hidden_states=embeds,
            txt_ids=embeds.new_zeros(embeds.shape[1], 3),
            img_ids=self.pipe._prepare_latent_image_ids(batch, height // 2, width // 2, x_t.device, x_t.dtype),
            return_dict=False,
        )[0]
        scale = self.pipe.vae_scale_factor
        return self._unpack(packed, height * scale, width * scale)

    def _unpack(self, packed: torch.Tensor, height: int, width: int) -> torch.Tensor:
        latents: torch.Tensor = self.pipe._unpack_latents(packed, height, width, self.pipe.vae_scale_factor)
        return latents

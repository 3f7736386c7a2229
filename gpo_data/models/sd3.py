"""Stable Diffusion 3 and 3.5: rectified flow on an SD3Transformer2DModel.

    x_t = (1 - t) x_0 + t e,   the transformer predicts e - x_0 and is told 1000 t

Conditioning is `prompt_embeds` [B, L, D] and `pooled_prompt_embeds` [B, P].
"""

from __future__ import annotations

import torch
from diffusers import StableDiffusion3Pipeline

from gpo_data.models import Conditioning
from gpo_data.models.flow import JOINT_BLOCK, Flow


class SD3(Flow):
    pipeline_class = StableDiffusion3Pipeline
    large_text_encoder = "text_encoder_3"
    # Attention and MLP of both streams; the names diffusers' own SD3 LoRA training uses, plus the MLPs.
    lora_targets = JOINT_BLOCK

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> Conditioning:
        length = self.sampler.max_sequence_length
        extra = {} if length is None else {"max_sequence_length": length}
        with self.encoding() as device:
            embeds, _, pooled, _ = self.pipe.encode_prompt(
                prompts, prompts, prompts, device=device, do_classifier_free_guidance=False, **extra
            )
        return {"prompt_embeds": embeds.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, denoiser: torch.nn.Module | None = None
    ) -> torch.Tensor:
        """The velocity e - x_0 at t [B] in [0, 1], by `denoiser` or the pipeline's own."""
        velocity: torch.Tensor = (denoiser or self.pipe.transformer)(
            hidden_states=x_t,
            timestep=t * self.pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"],
            pooled_projections=conditioning["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return velocity

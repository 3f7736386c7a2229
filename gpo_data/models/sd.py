"""Stable Diffusion 1.x and 2.x: DDPM on a UNet2DConditionModel, epsilon or v by the scheduler's `prediction_type`.

Conditioning is `prompt_embeds` [B, 77, D]. The safety checker is not loaded: it works on pictures, after the latents
that are stored, and a blackened picture would be measured as if the model had drawn it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline

from gpo_data.models import Conditioning
from gpo_data.models.ddpm import DDPM


class SD(DDPM):
    pipeline_class = StableDiffusionPipeline
    open_with: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> Conditioning:
        with self.encoding() as device:
            embeds, _ = self.pipe.encode_prompt(
                prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        return {"prompt_embeds": embeds.cpu()}

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, denoiser: torch.nn.Module | None = None
    ) -> torch.Tensor:
        """e or v at integers t [B], by `denoiser` or the pipeline's own."""
        predicted: torch.Tensor = (denoiser or self.pipe.unet)(
            x_t, t, encoder_hidden_states=conditioning["prompt_embeds"], return_dict=False
        )[0]
        return predicted

"""Stable Diffusion XL: DDPM on a UNet2DConditionModel with two text encoders and the picture's size.

Conditioning is `prompt_embeds` [B, 77, D1 + D2], `pooled_prompt_embeds` [B, D2] of the second encoder and
`add_time_ids` [B, 6]: original height and width, crop top and left, target height and width, in pixels, as the
pipeline fills them in when it is asked for a picture of the recipe's size (SDXL, arXiv 2307.01952, section 2.2).

Without a negative prompt the unconditional half is what the pipeline makes of none: zeros where the folder's
`force_zeros_for_empty_prompt` says so, which is another thing than the encoding of "".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline

from gpo_data.models import Conditioning
from gpo_data.models.ddpm import DDPM
from gpo_data.recipe import Sampler


class SDXL(DDPM):
    pipeline_class = StableDiffusionXLPipeline
    told = ("height", "width")
    # A watermark would be drawn or not by whether another package is installed.
    open_with: ClassVar[dict[str, Any]] = {"add_watermarker": False}

    def __init__(self, folder: Path, sampler: Sampler, for_training: bool = False) -> None:
        super().__init__(folder, sampler, for_training)
        if not for_training and self.dtype == torch.float16 and self.pipe.vae.config.force_upcast:
            self.pipe.vae.to(torch.float32)  # it overflows in float16; the pipeline upcasts it to decode as well

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> Conditioning:
        with self.encoding() as device:
            embeds, _, pooled, _ = self.pipe.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
        size = (self.sampler.height, self.sampler.width)
        time_ids = self.pipe._get_add_time_ids(
            size, (0, 0), size, embeds.dtype, text_encoder_projection_dim=pooled.shape[-1]
        )
        return {
            "prompt_embeds": embeds.cpu(),
            "pooled_prompt_embeds": pooled.cpu(),
            "add_time_ids": time_ids.repeat(len(prompts), 1),
        }

    @torch.inference_mode()
    def encode_negative(self) -> Conditioning:
        with self.encoding() as device:
            _, embeds, _, pooled = self.pipe.encode_prompt(
                "", device=device, negative_prompt=self.sampler.negative_prompt or None
            )
        return {"prompt_embeds": embeds.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    def call_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        # `__call__` makes the time ids from height and width.
        return super().call_arguments({k: v for k, v in conditioning.items() if k != "add_time_ids"})

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, denoiser: torch.nn.Module | None = None
    ) -> torch.Tensor:
        """e or v at integers t [B], by `denoiser` or the pipeline's own."""
        added = {"text_embeds": conditioning["pooled_prompt_embeds"], "time_ids": conditioning["add_time_ids"]}
        predicted: torch.Tensor = (denoiser or self.pipe.unet)(
            x_t,
            t,
            encoder_hidden_states=conditioning["prompt_embeds"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return predicted

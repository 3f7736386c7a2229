"""Sana 1.0 and 1.5: rectified flow on a SanaTransformer2DModel, latents of a 32-fold autoencoder.

    the transformer predicts e - x_0 and is told 1000 t timestep_scale

Conditioning is `prompt_embeds` [B, L, D] of a Gemma decoder and `prompt_attention_mask` [B, L]. Prompts go to it as the
pipeline's `__call__` sends them: in lower case, and behind the instruction that `__call__` has as its default; the
unconditional half goes without the instruction. Source: Sana (arXiv 2410.10629), as diffusers has it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import SanaPipeline

from gpo_data.models import Conditioning
from gpo_data.models.flow import Flow

INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class Sana(Flow):
    pipeline_class = SanaPipeline
    multiple_of = 32
    large_text_encoder = "text_encoder"
    # Both attentions. The MLP is made of convolutions.
    starting_dtype = torch.float32
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def encode(self, prompts: list[str]) -> Conditioning:
        return self._encode(prompts, INSTRUCTION)

    def encode_negative(self) -> Conditioning:
        return self._encode([self.sampler.negative_prompt], None)

    @torch.inference_mode()
    def _encode(self, prompts: list[str], instruction: list[str] | None) -> Conditioning:
        length = self.sampler.max_sequence_length
        extra = {} if length is None else {"max_sequence_length": length}
        with self.encoding() as device:
            embeds, mask, _, _ = self.pipe.encode_prompt(
                prompts,
                do_classifier_free_guidance=False,
                device=device,
                complex_human_instruction=instruction,
                **extra,
            )
        return {"prompt_embeds": embeds.cpu(), "prompt_attention_mask": mask.cpu()}

    def call_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        # The recipe's size is drawn; by default the pipeline would take the nearest in a table of its own. The default
        # of `negative_prompt` is "", which would be one too many beside the unconditional half.
        return super().call_arguments(conditioning) | {"use_resolution_binning": False, "negative_prompt": None}

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, denoiser: torch.nn.Module | None = None
    ) -> torch.Tensor:
        """The velocity e - x_0 at t [B] in [0, 1], by `denoiser` or the pipeline's own."""
        predicted: torch.Tensor = (denoiser or self.pipe.transformer)(
            x_t,
            encoder_hidden_states=conditioning["prompt_embeds"],
            encoder_attention_mask=conditioning["prompt_attention_mask"],
            timestep=t * self.pipe.scheduler.config.num_train_timesteps * self.pipe.transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return predicted[:, : x_t.shape[1]]  # what is beyond is a learned variance, which no sampler here reads

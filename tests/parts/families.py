"""A diffusers folder of every family, built from config with tiny random weights; what the tests of families share.

The pipelines have two UNet blocks or three transformer blocks and see 64x64 pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, Gemma2Config, Gemma2Model, T5Config, T5EncoderModel

from gpo_data import models
from gpo_data.recipe import Sampler
from gpo_data.tiny.pipeline import new_text_encoder, new_tokenizer

SAMPLER = Sampler(num_inference_steps=2, guidance_scale=4.0, height=64, width=64, dtype="float32", device="cpu")
PROMPTS = ['a red sign that says "AB"', "one blue circle"]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of every SD and SDXL
PLAIN = {"steps_offset": 1, "clip_sample": False}  # StableDiffusionPipeline warns of anything else


def new_autoencoder(**config: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        **config,
    )


def new_unet(**config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **config,
    )


def new_sd(scheduler: Any, **unet: Any) -> StableDiffusionPipeline:
    tokenizer = new_tokenizer()
    return StableDiffusionPipeline(
        vae=new_autoencoder(scaling_factor=0.18215),
        text_encoder=CLIPTextModel(new_text_encoder(tokenizer).config),
        tokenizer=tokenizer,
        unet=new_unet(cross_attention_dim=64, **unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def new_sdxl() -> StableDiffusionXLPipeline:
    tokenizer = new_tokenizer()
    encoder = new_text_encoder(tokenizer)
    time_ids = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return StableDiffusionXLPipeline(
        vae=new_autoencoder(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(encoder.config),
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        unet=new_unet(cross_attention_dim=128, projection_class_embeddings_input_dim=6 * 8 + 64, **time_ids),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
    )


def new_sd3() -> StableDiffusion3Pipeline:
    tokenizer = new_tokenizer()
    t5 = T5Config(vocab_size=len(tokenizer), d_model=128, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=new_autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=new_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=new_text_encoder(tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(t5),
        tokenizer_3=tokenizer,
        transformer=SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=128,
            caption_projection_dim=16,
            pooled_projection_dim=128,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
    )


def new_flux(guidance_embeds: bool) -> FluxPipeline:
    tokenizer = new_tokenizer()
    t5 = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance_embeds),
        vae=new_autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(new_text_encoder(tokenizer).config),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=tokenizer,
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=64,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def new_sana() -> SanaPipeline:
    tokenizer = new_tokenizer()
    tokenizer.model_max_length = 512  # the pipeline's instruction is long
    blocks = {f"{half}_block_out_channels": (8,) * 4 for half in ("encoder", "decoder")}
    layers = {f"{half}_layers_per_block": (1,) * 4 for half in ("encoder", "decoder")}
    scales = {f"{half}_qkv_multiscales": ((),) * 4 for half in ("encoder", "decoder")}
    return SanaPipeline(
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
        ),
        vae=AutoencoderDC(latent_channels=4, scaling_factor=0.41407, **blocks, **layers, **scales),
        text_encoder=Gemma2Model(
            Gemma2Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
            )
        ),
        tokenizer=tokenizer,
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            sample_size=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
        ),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "sd-epsilon": lambda: new_sd(PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)),
    "sd-v": lambda: new_sd(DDIMScheduler(**BETAS, prediction_type="v_prediction", **PLAIN)),
    "sdxl": new_sdxl,
    "sd3": new_sd3,
    "flux-dev": lambda: new_flux(guidance_embeds=True),
    "flux-schnell": lambda: new_flux(guidance_embeds=False),
    "sana": new_sana,
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A folder, and settings that it takes."""

    name: str
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        return {"max_sequence_length": 12} if self.flow else {}

    @property
    def flow(self) -> bool:
        return self.name in ("sd3", "sana") or self.name.startswith("flux")

    def model(self, **sampler: Any) -> Any:
        return models.load(self.folder, dataclasses.replace(SAMPLER, **self.settings, **sampler))

    def plain(self) -> Any:
        """The pipeline as a user opens it."""
        pipe = diffusers.DiffusionPipeline.from_pretrained(self.folder, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def assert_same(self, found: torch.Tensor, plain: torch.Tensor) -> None:
        """Equal to the last bit; SD3 but for rounding, because on a CPU models/cpu.py computes its blocks."""
        if self.name == "sd3":
            torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(found, plain)

    def call(self, pipe: Any, output_type: str, guidance_scale: float = SAMPLER.guidance_scale) -> Any:
        extra = {"use_resolution_binning": False} if self.name == "sana" else {}
        return pipe(
            PROMPTS,
            generator=[torch.Generator().manual_seed(s) for s in (1, 2)],
            output_type=output_type,
            height=64,
            width=64,
            num_inference_steps=2,
            guidance_scale=guidance_scale,
            **self.settings,
            **extra,
        ).images


def assert_same_pictures(found: list[np.ndarray], plain: np.ndarray) -> None:
    """uint8 pictures, and the plain pipeline's in [0, 1]: at most one in a thousand values is off, and by one level.

    The autoencoder's convolutions add in an order that depends on batch, layout and alignment in memory.
    """
    off = np.abs(np.stack(found).astype(int) - (plain * 255).round().astype(int))
    assert off.max() <= 1 and np.count_nonzero(off) <= off.size / 1000


def save(pipeline: Any, folder: Path) -> None:
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"  # transformers 5 writes its own name of the class
    index.write_text(index.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def build(name: str, folder: Path) -> Family:
    torch.manual_seed(0)
    save(FAMILIES[name](), folder)
    return Family(name, folder)

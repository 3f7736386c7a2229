"""Stable Diffusion 3.5 Medium built from its configuration, with random weights: what a benchmark draws and trains.

The denoiser and the autoencoder are the real ones' architecture. The text encoders are small, because they run once a
shard, but they return as many tokens of the real width: 77 of CLIP and 256 of T5, 4096 wide, 2048 pooled.
`tiny` is the same with few and narrow layers, for a CPU.
Source: transformer/config.json and vae/config.json of stabilityai/stable-diffusion-3.5-medium.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from gpo_data.tiny.pipeline import new_tokenizer

CLIP_TOKENS, T5_TOKENS = 77, 256


@dataclasses.dataclass(frozen=True)
class Size:
    """What is scaled between the real one and the tiny one."""

    layers: int
    heads: int
    head_dim: int
    dual: tuple[int, ...]  # layers with a second attention, over the picture alone
    joint: int  # width of the text embeddings
    pooled: int
    positions: int  # side of the table of positions, patches
    channels: tuple[int, ...]  # of the autoencoder


FULL = Size(24, 24, 64, tuple(range(13)), 4096, 2048, 384, (128, 256, 512, 512))
TINY = Size(3, 2, 16, (0, 1), 128, 128, 24, (8, 8, 8, 8))


def new_transformer(size: Size) -> SD3Transformer2DModel:
    """The denoiser, bfloat16."""
    return SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=size.layers,
        attention_head_dim=size.head_dim,
        num_attention_heads=size.heads,
        joint_attention_dim=size.joint,
        caption_projection_dim=size.heads * size.head_dim,
        pooled_projection_dim=size.pooled,
        pos_embed_max_size=size.positions,
        dual_attention_layers=size.dual,
        qk_norm="rms_norm",
    ).to(torch.bfloat16)


def build(size: Size, folder: Path, device: str) -> Path:
    """Save the pipeline in `folder`, bfloat16."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    tokenizer.model_max_length = CLIP_TOKENS
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        projection_dim=size.pooled // 2,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    t5 = T5Config(vocab_size=len(tokenizer), d_model=size.joint, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    with torch.device(device):
        transformer = new_transformer(size)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=16,
            block_out_channels=size.channels,
            layers_per_block=2,
            norm_num_groups=min(32, size.channels[0]),
            sample_size=1024,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
            force_upcast=True,
        ).to(torch.bfloat16)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(clip).to(torch.bfloat16),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip).to(torch.bfloat16),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(t5).to(torch.bfloat16),
        tokenizer_3=tokenizer,
    )
    pipe.save_pretrained(folder)
    index = folder / "model_index.json"  # transformers 5 writes its own name of the class
    index.write_text(index.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    return folder

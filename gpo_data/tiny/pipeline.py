"""The parts of the tiny `StableDiffusion3Pipeline` and the conditioning it gives its transformer.

The pipeline's `encode_prompt` returns

    prompt_embeds = concat_tokens( concat_width(clip_1[-2], clip_2[-2]),  0 [max_sequence_length] )
    pooled        = concat_width(pooled_1, pooled_2)

that is 14 CLIP tokens and then m rows of zeros, m = `max_sequence_length` (256 in a plain call).
The zeros are what diffusers gives without a third text encoder; but a folder without one does
not open plainly (diffusers 0.42: `text_encoder_3` is not optional), so the third encoder is a
T5 of a few hundred parameters whose last norm is zero: it returns exactly these zeros.
The zero rows have no position, so they stay equal to each other in every block: m of them are
exactly one zero row whose attention logit is raised by log m. Training draws m = 1 and m = 256
through `ZeroRows`, so that a plain call is right and a recipe may pass max_sequence_length=1,
which is several times cheaper.
"""

import math
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from gpo_data.tiny.words import COLORS, LETTERS, NUMBERS, SHAPES

MAX_TOKENS = 14  # <start> a red sign that says " K I T E S " <end>


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Upper-case letters are tokens of their own, lower-case words one token each."""
    vocabulary = ["<start>", "<unk>", "<pad>", "<end>", '"', "a", "sign", "that", "says"]
    vocabulary += [*COLORS, *NUMBERS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *LETTERS]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[a-z]+|[^a-z]"), behavior="isolated"),
        ]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=MAX_TOKENS,
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


def new_text_encoder(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModelWithProjection:
    """Two layers of 64; the pipeline reads the states before the last layer."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_zero_tokenizer() -> PreTrainedTokenizerFast:
    """Turns every prompt into padding, so that any `max_sequence_length` truncates nothing."""
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    core.normalizer = normalizers.Replace(Regex(r"[\s\S]+"), "")
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=512, pad_token="<pad>", unk_token="<unk>")


def new_zero_encoder() -> T5EncoderModel:
    """A T5 that returns zeros of width 128: its final norm multiplies by 0."""
    config = T5Config(vocab_size=2, d_model=128, d_kv=1, d_ff=1, num_layers=1, num_heads=1)
    encoder = T5EncoderModel(config)
    torch.nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder


def new_transformer(layers: int = 6, heads: int = 6, head_dim: int = 32) -> SD3Transformer2DModel:
    """Joint blocks, six of six heads of 32 unless said otherwise, patch 1 on latents of 8x8x16."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        joint_attention_dim=128,
        caption_projection_dim=heads * head_dim,
        pooled_projection_dim=128,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


class ZeroRows:
    """Joint attention of SD3 in which the last key stands for `rows` equal ones.

    The sum over m equal keys, m exp(q k), is exp(q k + log m): a bias on one column.
    """

    def __init__(self) -> None:
        self.rows = 1

    def __call__(self, attn, hidden_states, encoder_hidden_states, **_):
        batch, pixels = hidden_states.shape[:2]

        def heads(x: torch.Tensor, norm=None) -> torch.Tensor:
            x = x.view(batch, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)
            return x if norm is None else norm(x)

        query, key, value = (
            torch.cat([heads(picture(hidden_states), norm), heads(words(encoder_hidden_states), added_norm)], dim=2)
            for picture, norm, words, added_norm in (
                (attn.to_q, attn.norm_q, attn.add_q_proj, attn.norm_added_q),
                (attn.to_k, attn.norm_k, attn.add_k_proj, attn.norm_added_k),
                (attn.to_v, None, attn.add_v_proj, None),
            )
        )
        bias = None
        if self.rows > 1:
            bias = torch.zeros(1, key.shape[2], device=key.device, dtype=query.dtype)
            bias[:, -1] = math.log(self.rows)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        picture, words = (
            mixed.transpose(1, 2)
            .reshape(batch, -1, query.shape[1] * query.shape[3])
            .split([pixels, key.shape[2] - pixels], dim=1)
        )
        return attn.to_out[0](picture), words if attn.context_pre_only else attn.to_add_out(words)


def encode(token_ids: torch.Tensor, encoders: torch.nn.ModuleList) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, 14] ids -> prompt_embeds [B, 15, 128] (one zero row), pooled [B, 128], with gradients."""
    outputs = [encoder(token_ids, output_hidden_states=True) for encoder in encoders]
    embeds = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    embeds = torch.cat([embeds, embeds.new_zeros(len(embeds), 1, embeds.shape[-1])], dim=1)
    return embeds, torch.cat([output.text_embeds for output in outputs], dim=-1)


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> torch.Tensor:
    """Ids [B, 14], padded and cut exactly as the pipeline does."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def save_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    transformer: SD3Transformer2DModel,
    encoders: torch.nn.ModuleList,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Write the pipeline folder in float16; the models given keep their own precision.

    The text encoders (1.3 MB) stay float32: transformers 5 opens a file in the precision it was
    saved in and diffusers in float32, so that a plain `from_pretrained` would mix the two.
    """
    pipeline = StableDiffusion3Pipeline(
        transformer=deepcopy(transformer).half(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        vae=deepcopy(vae).half(),
        text_encoder=deepcopy(encoders[0]).float(),
        tokenizer=tokenizer,
        text_encoder_2=deepcopy(encoders[1]).float(),
        tokenizer_2=tokenizer,
        text_encoder_3=new_zero_encoder(),
        tokenizer_3=new_zero_tokenizer(),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # transformers 5 writes its own name of the class; this one opens everywhere.
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))

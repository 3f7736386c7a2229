"""What of a pipeline is loaded, where it lies, and how it is cut: the options of memory and speed.

    drawing     denoiser and autoencoder on the device; text encoders beside them, there only while prompts are
                embedded, or on the CPU (`sampler.text_encoders`), the large one in 8 bits if need be
    training    the denoiser and the scheduler alone: the shards carry the prompts' embeddings and the latents

An option that the installed packages or the model do not have is a UsageError that says which there are.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import nn

from gpo_data.errors import UsageError

# diffusers remarks at every call that backends are an experimental feature; the recipe asked for one.
logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)


def load_denoiser_only(folder: Path) -> dict[str, Any]:
    """Arguments of `from_pretrained` that leave out text encoders, tokenizers and the autoencoder's weights.

    The autoencoder comes without storage (on the meta device), because the pipelines read from its configuration how
    many pixels a latent is; the caller drops it.
    """
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name in index if name.startswith(("text_encoder", "tokenizer"))}
    kind = getattr(diffusers, index["vae"][1])
    with torch.device("meta"):
        return absent | {"vae": kind.from_config(kind.load_config(folder, subfolder="vae"))}


def in_8_bit(encoder: str | None, folder: Path) -> dict[str, Any]:
    """Arguments of `from_pretrained` that open the pipeline's text encoder of that name in 8 bits."""
    if encoder is None:
        raise UsageError(
            f"sampler.text_encoder_8bit: the model in {folder} has only CLIP text encoders; set it to false"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            "sampler.text_encoder_8bit: needs the package bitsandbytes, which is not installed: `pip install "
            "bitsandbytes`; or set it to false and sampler.text_encoders: cpu, which takes no memory of the device"
        )
    from transformers import BitsAndBytesConfig

    mapping = {encoder: BitsAndBytesConfig(load_in_8bit=True)}
    return {"quantization_config": diffusers.PipelineQuantizationConfig(quant_mapping=mapping)}


def set_attention(denoiser: Any, name: str, for_training: bool = False) -> None:
    """Have the denoiser's attention computed by diffusers' backend of that name. Raises UsageError."""
    known = sorted(backend.value for backend in AttentionBackendName)
    if name not in known:
        raise UsageError(f"sampler.attention_backend: expected null or any of {', '.join(known)}, found {name!r}")
    if for_training and "sage" in name:  # its kernel is outside of autograd: layers behind it would learn nothing
        raise UsageError(f"sampler.attention_backend: {name}: has no backward pass; it draws, and cannot train")
    processors = [getattr(part, "processor", None) for part in denoiser.modules()]
    if not any(hasattr(processor, "_attention_backend") for processor in processors):
        raise UsageError(  # set_attention_backend would pass over it in silence
            f"sampler.attention_backend: {name}: {type(denoiser).__name__} takes none in diffusers "
            f"{diffusers.__version__}: it calls torch's scaled_dot_product_attention, which chooses by itself; set null"
        )
    try:
        denoiser.set_attention_backend(name)
    except (RuntimeError, ImportError, ValueError) as error:  # a package is missing or too old
        raise UsageError(f"sampler.attention_backend: {name}: {' '.join(str(error).split())}") from None


def enable_vae_slicing(vae: Any, slicing: bool, tiling: bool) -> None:
    """Decode a picture at a time, or a tile at a time."""
    for key, wanted in (("slicing", slicing), ("tiling", tiling)):
        if wanted:
            try:
                getattr(vae, f"enable_{key}")()
            except (AttributeError, NotImplementedError):
                raise UsageError(f"sampler.vae_{key}: {type(vae).__name__} does not have it; set it to false") from None


def text_encoders_of(pipe: Any) -> list[nn.Module]:
    """Those that the pipeline has; a folder may lack one."""
    return [part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None]


def place(pipe: Any, device: torch.device, but: list[nn.Module]) -> None:
    """Move the pipeline's networks to the device, all except those in `but` and those in 8 bits, which stay put."""
    for part in pipe.components.values():
        movable = isinstance(part, nn.Module) and not getattr(part, "is_loaded_in_8bit", False)
        if movable and not any(part is other for other in but):
            part.to(device)

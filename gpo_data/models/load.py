"""Diffusers pipelines behind one small interface, one file a family.

    encode(prompts)                   -> conditioning {name: [B, ...]}
    draw(conditioning, seeds)         -> latents [B, C, h, w], the sampler's own final latents
    decode(latents)                   -> B pictures, uint8 [H, W, 3]
    unconditional()                   -> conditioning of one prompt, of `sampler.negative_prompt`
    starting_noise(seeds, shape, ...) -> e, the noise that `draw` starts from
    noise(x_0, e, t)                  -> x_t        (the family's forward process)
    target(x_0, e, t)                 -> y, what the denoiser was trained to say there
    time(u)                           -> u in (0, 1) as the family's t, with the scheduler's own shift or without
    predict(x_t, t, conditioning)     -> the denoiser's output at t; `denoiser` is the module that trains

`load` picks the family from `model_index.json`. `tiny` is the embedded model; anything else is a local diffusers
folder or a hub id. Nothing at import time touches the network.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError

from gpo_data.errors import UsageError, words
from gpo_data.models.folder import expect_tensors, expect_whole, read_json
from gpo_data.models.hub import fetched
from gpo_data.models.lora import load_lora
from gpo_data.models.rounding import drawn_weights
from gpo_data.recipe import Sampler

# pipeline class in model_index.json -> (module, class) of the family
FAMILIES = {
    "StableDiffusion3Pipeline": ("gpo_data.models.sd3", "SD3"),
    "StableDiffusionPipeline": ("gpo_data.models.sd", "SD"),
    "StableDiffusionXLPipeline": ("gpo_data.models.sdxl", "SDXL"),
    "FluxPipeline": ("gpo_data.models.flux", "Flux"),
    "SanaPipeline": ("gpo_data.models.sana", "Sana"),
}

# How pictures are computed here, part of a dataset's fingerprint: by another number their last bits differ. 2: cpu.py.
ARITHMETIC = 2

Conditioning = dict[str, torch.Tensor]


class Model(Protocol):
    """What generate.py and the trainers need of a family; see the module's docstring for shapes."""

    lora_targets: tuple[str, ...]
    whole_steps: bool

    @property
    def denoiser(self) -> torch.nn.Module: ...
    def encode(self, prompts: list[str]) -> Conditioning: ...
    def unconditional(self) -> Conditioning: ...
    def draw(
        self, conditioning: Conditioning, seeds: list[int], on_step: Callable[[], None] | None = None
    ) -> torch.Tensor: ...
    def decode(self, latents: torch.Tensor) -> list[np.ndarray]: ...
    def encode_images(self, images: list[np.ndarray]) -> torch.Tensor: ...
    def starting_noise(self, seeds: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor: ...
    def noise(self, x_0: torch.Tensor, e: torch.Tensor, t: torch.Tensor) -> torch.Tensor: ...
    def target(self, x_0: torch.Tensor, e: torch.Tensor, t: torch.Tensor) -> torch.Tensor: ...
    def time(self, u: torch.Tensor, shifted: bool = True) -> torch.Tensor: ...
    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, denoiser: torch.nn.Module | None = None
    ) -> torch.Tensor: ...


def resolve(model: str, revision: str | None = None) -> Path:
    """The local folder of a model: `tiny`, a folder, or a hub id (fetched if need be). Raises UsageError."""
    if model == "tiny":
        from gpo_data.tiny import PIPELINE_DIR

        return _folder(
            PIPELINE_DIR, "this checkout has no embedded weights: `make tiny` trains them, or give another `model:`"
        )
    if Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        return _folder(Path(model).expanduser(), "give a diffusers folder, a hub id such as owner/name, or `tiny`")
    try:
        found = fetched(model, revision)
    except Exception as error:  # the hub's client raises many kinds, and httpx's and OS errors besides
        raise UsageError(
            f"model {model!r}: not in the local hub cache, and the hub did not give it "
            f"({type(error).__name__}). Put a diffusers folder (model_index.json with its sub-folders) on this "
            f"machine and set `model:` to its path, or run `hf download {model}` where the hub is reachable"
        ) from None
    return _folder(found, "")


def _folder(folder: Path, hint: str) -> Path:
    single = folder if folder.is_file() else next(iter(sorted(folder.glob("*.safetensors"))), None)
    if (folder / "model_index.json").is_file():
        expect_whole(folder)
        return folder
    if single is not None:
        raise UsageError(
            f"model: expected a diffusers folder with model_index.json, found the single file {single}; make one of it "
            f"where there is a network: `diffusers.StableDiffusionXLPipeline` (or the model's own class) "
            f"`.from_single_file({single.name!r}).save_pretrained(FOLDER)`, and set model: to FOLDER"
        )
    raise UsageError(f"model: expected {folder / 'model_index.json'}, found no such file; {hint}")


def load(folder: Path, sampler: Sampler, for_training: bool = False) -> Model:
    """Open the pipeline in `folder` on the sampler's device and dtype.

    For training it is the denoiser alone, on the CPU until the trainer moves it; it neither encodes nor draws.
    """
    family = _family(folder)
    try:
        model: Model = family(folder, sampler, for_training)
    except (OSError, ValueError, KeyError, EOFError, SafetensorError, UnpicklingError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = words(error)
        raise UsageError(f"model {folder}: does not open: {reason}") from error
    return model


def _family(folder: Path) -> Any:
    """The class in `folder`'s model_index.json. Raises UsageError."""
    name = read_json(folder / "model_index.json").get("_class_name")
    if name not in FAMILIES:
        raise UsageError(f"model {folder}: pipeline class {name} is not supported; known: {', '.join(FAMILIES)}")
    module, family = FAMILIES[name]
    return getattr(importlib.import_module(module), family)


def told(folder: Path) -> tuple[str, ...]:
    """What of `sampler:` the model in `folder` is told in training as when it drew. Raises UsageError."""
    found: tuple[str, ...] = _family(folder).told
    return found


def expect_size(folder: Path, sampler: Sampler) -> None:
    """Raise UsageError unless the model in `folder` draws pictures of that height and width."""

    def config(part: str) -> dict[str, Any]:
        path = folder / part / "config.json"
        return read_json(path) if path.is_file() else {}

    family, vae = _family(folder), config("vae")
    denoiser = config(family.denoiser_name)
    levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0]
    step = math.lcm(family.multiple_of, 2 ** (len(levels) - 1) * (denoiser.get("patch_size") or 1))
    most = step * (denoiser.get("pos_embed_max_size") or 8192)
    for key in ("height", "width"):
        value = getattr(sampler, key)
        if value % step or value > most:
            limit = f", at most {most}" if most <= 8192 else ""
            raise UsageError(f"sampler.{key}: expected a multiple of {step}{limit} for this model, found {value}")


def expect_unconditional(folder: Path, keys: list[str]) -> None:
    """Raise UsageError where `keys` ask for an unconditional half, and the model in `folder` has none."""
    if keys and not _family(folder).has_unconditional:
        raise UsageError(
            f"{', '.join(keys)}: the model in {folder} has no unconditional half (guidance is an input of its "
            f"denoiser, or it takes none); leave this out"
        )


LORA_FILE, WHOLE = "pytorch_lora_weights.safetensors", "diffusion_pytorch_model"  # diffusers' own names


def lora_of(policy: Path) -> Path | None:
    """The LoRA that a recipe's `policy:` is, or has in it; None of a denoiser's whole weights."""
    single = policy.suffix == ".safetensors" and not policy.name.startswith(WHOLE)
    file = policy if single else policy / LORA_FILE
    return file if file.is_file() else None


def policy_path(policy: str) -> Path:
    """A recipe's `policy:`, a LoRA's file or a folder, checked. Raises UsageError."""
    path = Path(policy).expanduser()
    if not lora_of(path) and not list(path.glob(f"*/{WHOLE}*.safetensors")):
        raise UsageError(
            f"policy: expected a LoRA's .safetensors, a folder with {LORA_FILE}, or one with the denoiser's own "
            f"sub-folder with {WHOLE}.safetensors, found none of these at {path}; `gpo-train fit` writes a folder, "
            f"runs/<run>/policy"
        )
    for file in path.glob(f"*/{WHOLE}*.safetensors"):
        expect_tensors(file)
    return path


def load_policy_weights(model: Any, policy: Path, seed: int = 0) -> float | None:
    """Put trained weights (see `policy_path`) over the model's own, instead of an earlier one's.

    Returns: the share of weights that are drawn otherwise than the model's own; None of a LoRA.

    Args:
        seed: of the rounding of whole weights to the two bytes that draw (rounding.py).
    """
    if lora := lora_of(policy):
        model.pipe.unload_lora_weights()  # a second LoRA would be added to the first
        load_lora(model.pipe, model.denoiser_name, lora)
        return None
    state, changed = drawn_weights(
        sorted(policy.glob(f"*/{WHOLE}*.safetensors")), model.denoiser_files(), model.dtype, seed
    )
    try:
        model.denoiser.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"policy: {policy}: expected this model's denoiser, found another: {reason}") from None
    return changed


def repeat(conditioning: Conditioning, counts: list[int]) -> Conditioning:
    """Row i of every tensor, counts[i] times over."""
    return {k: torch.repeat_interleave(v, torch.tensor(counts), dim=0) for k, v in conditioning.items()}


def versions() -> dict[str, Any]:
    import diffusers
    import transformers

    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__}

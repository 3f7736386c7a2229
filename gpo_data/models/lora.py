"""A policy's LoRA: adapters of the denoiser's layers, whatever its writer called them.

    transformer.<layer>.lora_A.weight       diffusers: the pipeline's own name of the denoiser, the layer's name
    unet.<layer>..., <layer>...             under the other name, or under none
    lora_unet_<layer>.lora_down.weight      kohya: the layer's name with _ for each dot; `lora_up`, `alpha`;
    lora_transformer_<layer>...             B is worth alpha / rank
    anything else                           as far as diffusers converts it (SDXL's and FLUX's layers as kohya has them)

What always holds: every layer in the file is one of the denoiser's, of its shape, and has an adapter afterwards; a file
that would change nothing, or a part of itself, is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from gpo_data.errors import UsageError, words
from gpo_data.models.folder import expect_tensors

TEXT = ("text_encoder", "lora_te")  # of the text encoders', which diffusers knows
KOHYA = ("lora_unet_", "lora_transformer_")
ENDS = {".lora_down.weight": ".lora_A.weight", ".lora_up.weight": ".lora_B.weight"}


def load_lora(pipe: Any, denoiser_name: str, file: Path) -> None:
    """Put the adapters in `file` on the pipeline. Raises UsageError."""
    expect_tensors(file)
    denoiser: Any = getattr(pipe, denoiser_name)
    layers = {name: module for name, module in denoiser.named_modules() if hasattr(module, "weight")}
    with safe_open(file, "pt") as stored:
        names = list(stored.keys())
    own = all(name.startswith((f"{denoiser_name}.", *TEXT)) for name in names)
    # A file of diffusers' own names says in its metadata what else belongs to it.
    state = None if own else _renamed(load_file(file), denoiser_name, layers)
    for name, tensor in (load_file(file) if state is None else state).items():
        if name.startswith(f"{denoiser_name}."):
            _expect_layer(file, name.removeprefix(f"{denoiser_name}."), tensor, layers)
    how: dict[str, Any] = {"weight_name": file.name} if state is None else {}
    try:
        pipe.load_lora_weights(file.parent if state is None else state, **how)
    except (ValueError, RuntimeError, KeyError, IndexError, AttributeError, TypeError) as error:  # of the converters
        reason = words(error)
        raise UsageError(f"policy: {file}: diffusers does not take it: {reason}; {_wanted(denoiser_name)}") from None
    if not any("lora" in name for name, _ in denoiser.named_parameters()):
        raise UsageError(
            f"policy: {file}: none of its {len(names)} tensors is of this denoiser, the first: {names[0]!r}; "
            f"{_wanted(denoiser_name)}"
        )


def _renamed(state: dict[str, Tensor], denoiser_name: str, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Under diffusers' names where they can be told; the others as they are."""
    flat = {name.replace(".", "_"): name for name in layers}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, end = _split(name)
        for prefix in ("transformer.", "unet.", *KOHYA, ""):
            inside = stem.removeprefix(prefix)
            if not stem.startswith(prefix) or not (layer := inside if inside in layers else flat.get(inside)):
                continue
            if end in ENDS.values():
                found[f"{denoiser_name}.{layer}{end}"] = tensor * _scale(state, stem, tensor, end)
            break
        else:
            found[name] = tensor
    return found


def _split(name: str) -> tuple[str, str]:
    """(the layer, what it is), with diffusers' word for the latter."""
    for end, ours in [*ENDS.items(), *((one, one) for one in ENDS.values()), (".alpha", ".alpha")]:
        if name.endswith(end):
            return name.removesuffix(end), ours
    return name, ""


def _scale(state: dict[str, Tensor], stem: str, tensor: Tensor, end: str) -> float:
    """alpha / rank of a layer, which goes into B: [out, rank]."""
    alpha = state.get(f"{stem}.alpha")
    return float(alpha) / tensor.shape[1] if alpha is not None and end == ".lora_B.weight" else 1.0


def _expect_layer(file: Path, name: str, tensor: Tensor, layers: dict[str, nn.Module]) -> None:
    layer, end = _split(name)
    if end not in ENDS.values():
        return
    if layer not in layers:
        raise UsageError(f"policy: {file}: {name}: this model's denoiser has no layer {layer}; it is of another model")
    weight: Any = layers[layer].weight
    found, of, side = tensor.shape, weight.shape, int(end == ".lora_A.weight")
    if tensor.ndim < 2 or found[side] != of[side]:
        raise UsageError(
            f"policy: {file}: {name}: expected {of[side]} in dimension {side}, as {layer} has {list(of)}, found "
            f"{list(found)}; it is of another model"
        )


def _wanted(denoiser_name: str) -> str:
    return f"expected adapters such as {denoiser_name}.<layer>.lora_A.weight, of this model's layers"

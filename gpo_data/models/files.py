"""Which files of a diffusers folder a pipeline is made from: those are fetched, and a model's digest is of them.

A repository on the hub has others beside them: the same weights in one file for other programs, in half precision,
pickled, for other frameworks.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

INDEX = "model_index.json"
TENSORS, PICKLED = ".safetensors", ".bin"
PLAIN = (".json", ".txt", ".model")  # configurations, tokenizers
DENOISERS = ("transformer", "unet")
NOT_OPENED = ("safety_checker",)


def needed(names: Iterable[str], index: dict[str, Any]) -> list[str]:
    """Of the names of a folder's files, those that its pipeline opens, sorted.

    A part's weights are taken once: safetensors before pickles, and under the name of the variant that the denoiser has
    (folder.py), else under a plain name.

    Args:
        names: relative, with slashes. index: what model_index.json says.
    """
    parts: dict[str, list[str]] = {
        part: [] for part, kind in index.items() if isinstance(kind, list) and kind[:1] != [None] and part[:1] != "_"
    }
    for name in names:
        path = PurePosixPath(name)
        if len(path.parts) == 2 and path.parts[0] in parts and path.parts[0] not in NOT_OPENED:
            parts[path.parts[0]].append(path.name)
    variant = next((only_variant(parts[part]) for part in DENOISERS if part in parts), "")
    return sorted([INDEX, *(f"{part}/{name}" for part, found in parts.items() for name in _of_part(found, variant))])


def _of_part(names: list[str], variant: str) -> list[str]:
    kind = TENSORS if any(name.endswith(TENSORS) for name in names) else PICKLED
    there = {variant_in(name) for name in names if name.endswith(kind)}
    taken = {variant} & there or {""} & there or there

    def opened(name: str) -> bool:
        if name.endswith(kind) or f"{kind}.index." in name:
            return variant_in(name) in taken
        return name.endswith(PLAIN) and ".index." not in name

    return [name for name in names if opened(name)]


def only_variant(names: list[str]) -> str:
    """`fp16` where a part's safetensors are there under that name alone; else ""."""
    there = sorted({variant_in(name) for name in names if name.endswith(TENSORS)})
    return "" if "" in there or not there else there[0]


def variant_in(name: str) -> str:
    """`fp16` in the name of a file of weights, or of the index of several; "" in a plain one.

    model-00001-of-00002.fp16.safetensors, diffusion_pytorch_model.fp16-00001-of-00002.safetensors of old, and
    model.safetensors.index.fp16.json.
    """
    inner = [piece for piece in name.split(".")[1:-1] if piece not in ("safetensors", "bin", "index")]
    return inner[0].split("-")[0] if inner else ""

"""A denoiser's files of weights, and the tensors in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from gpo_data.models.files import variant_in


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a denoiser's folder: those without a variant in their name, if there are any."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if not variant_in(file.name)] or files


def by_name(files: list[Path]) -> dict[str, Callable[[], Tensor]]:
    """Each tensor of some files, read when it is asked for."""

    def reader(file: Path, name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(file, "pt") as stored:
                tensor: Tensor = stored.get_tensor(name)
                return tensor

        return read

    found: dict[str, Callable[[], Tensor]] = {}
    for file in files:
        with safe_open(file, "pt") as stored:
            found |= {name: reader(file, name) for name in sorted(stored.keys())}
    return found

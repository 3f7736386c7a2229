"""A diffusers folder as people have it, checked before its weights are opened.

    model_index.json        names the parts: {"vae": ["diffusers", "AutoencoderKL"], ...}
    <part>/*.json           a configuration each
    <part>/*.safetensors    networks: under a plain name, or as a variant (`model.fp16.safetensors`); a large one in
                            several files that an index lists

What always holds: a folder that is not whole is told in one line, with the file, what was found in it and what to do;
of a weight the header alone is read, which says how long the file has to be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpo_data.errors import UsageError
from gpo_data.models.files import only_variant

NETWORKS = ("transformer", "unet", "vae", "text_encoder")  # and text_encoder_2, ...
OTHERS = ("scheduler", "tokenizer")
POINTER = b"version https://git-lfs"
HEADER = 10**8  # bytes, at most, of a safetensors file; the library's own limit


def expect_whole(folder: Path) -> None:
    """Raise UsageError unless a pipeline can be made from what is in the folder."""
    for part, kind in read_json(folder / "model_index.json").items():
        if not part.startswith((*NETWORKS, *OTHERS)) or not isinstance(kind, list) or not kind[0]:
            continue
        if not (folder / part).is_dir():
            raise UsageError(
                f"model {folder}: expected the folder {part}, which model_index.json names, found none; fetch the "
                f"model again, all of its folders"
            )
        for file in sorted((folder / part).glob("*.json")):
            read_json(file)
        if part.startswith(NETWORKS):
            _expect_weights(folder / part)


def _expect_weights(folder: Path) -> None:
    for index in folder.glob("*.safetensors.index*.json"):
        for name in sorted(set(read_json(index).get("weight_map", {}).values())):
            if not (folder / name).is_file():
                raise UsageError(f"model {folder}: expected {name}, which {index.name} lists, found no such file")
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        expect_tensors(file)
    for file in (found := sorted(folder.glob("*.bin"))):
        _refuse_pointer(file)
    if not files and not found:
        raise UsageError(
            f"model {folder}: expected weights (*.safetensors), found {_names(folder)}; fetch the model again"
        )


def variant_of(folder: Path, part: str) -> str | None:
    """`fp16` where the part's weights are there under that name alone; None where they have plain names."""
    return only_variant([file.name for file in (folder / part).glob("*.safetensors")]) or None


def expect_tensors(file: Path) -> None:
    """Raise UsageError unless a safetensors file is as long as its header says."""
    _refuse_pointer(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            if size < 8 or length > min(HEADER, size):
                raise ValueError
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            raise UsageError(f"{file}: expected safetensors, found {size:,} bytes of something else{AGAIN}") from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise UsageError(f"{file}: expected {expected:,} bytes, as its header says, found {size:,}{AGAIN}")


AGAIN = "; it was not fetched whole: fetch it again"


def read_json(file: Path) -> dict[str, Any]:
    """Raises UsageError."""
    _refuse_pointer(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UsageError(f"{file}: expected JSON, found {' '.join(str(error).split())[:200]}{AGAIN}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{file}: expected an object, found {type(found).__name__}{AGAIN}")
    return found


def _refuse_pointer(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            begins = stream.read(len(POINTER))
    except OSError as error:
        raise UsageError(f"{file}: cannot read: {error.strerror}") from None
    if begins == POINTER:
        raise UsageError(
            f"{file}: found a Git LFS pointer in the place of the file: run `git lfs install && git lfs pull` in its "
            f"folder, or fetch the model with `hf download`"
        )


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"

"""A group: a prompt and its G members; the unit of storage, reading and standardisation, never split.

On disk a group is one WebDataset sample:

    text-00000042.group.json           prompt, target, seeds, statuses, measurements and rewards as drawn
    text-00000042.latents.safetensors  latents [G, C, H, W], the sampler's own final latents
    text-00000042.prompt.safetensors   the conditioning (prompt_embeds, ...), so that training loads no text encoder
    text-00000042.00.png ...           a preview a member: lossless PNG below 128 px, WebP above
    text-00000040.unconditional.safetensors    in the place of the conditioning where there is no prompt; only in a
                                       shard's first group, and only where the recipe asks for it

What always holds: the key matches `[a-z0-9_-]+` (a dot would split a sample), every list has G entries, and the
bytes are a function of the content alone. A failed member keeps its place: `statuses[i]` is a code (status.py) and
`reasons[i]` says why; its reward is None, and it may lack a preview.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors

from gpo_data import status
from gpo_data.errors import few
from gpo_data.parts import PICTURE, UNCONDITIONAL, Damage, open_json, open_picture, open_tensors
from gpo_data.prompt import Prompt

NOT_FINITE = "latents.safetensors: expected finite latents of the members that are ok"
LOSSLESS_BELOW = 128  # pixels; small pictures lose letters to lossy coding


@dataclass
class Group:
    """One prompt's members. `images[i]` is uint8 [H, W, 3] or None; `latents` is [G, C, H, W]."""

    key: str
    prompt: Prompt
    seeds: list[int]
    latents: torch.Tensor
    conditioning: dict[str, torch.Tensor]
    images: list[np.ndarray | None]
    statuses: list[str] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)  # empty where no member failed
    measurements: list[dict[str, Any]] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=list)
    unconditional: dict[str, torch.Tensor] | None = None  # of the dataset: in place of `conditioning`, by name

    @property
    def size(self) -> int:
        return len(self.seeds)


def member_seed(recipe_seed: int, task: str, prompt_id: str, member: int) -> int:
    """The noise seed of a member: blake2b(recipe seed, task, prompt_id, member) cut to 63 bits."""
    text = f"{recipe_seed}/{task}/{prompt_id}/{member}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def group_key(task: str, index: int) -> str:
    return f"{task}-{index:08d}"


def to_sample(group: Group) -> dict[str, bytes]:
    """The group as {extension: bytes}, which the tar holds sorted by name."""
    meta = {
        "key": group.key,
        "prompt_id": group.prompt.prompt_id,
        "prompt": group.prompt.text,
        "target": group.prompt.target,
        "seeds": group.seeds,
        "statuses": group.statuses,
        "measurements": group.measurements,
        "rewards": group.rewards,
    }
    if any(group.reasons):  # not in a group that is whole, whose bytes are those of 0.1
        meta["reasons"] = group.reasons
    sample = {
        "group.json": json.dumps(meta, ensure_ascii=False, allow_nan=False).encode(),
        "latents.safetensors": save_safetensors({"latents": group.latents.contiguous()}),
        "prompt.safetensors": _packed(group.conditioning),
    }
    if group.unconditional is not None:
        sample[UNCONDITIONAL] = _packed(group.unconditional)
    for member, image in enumerate(group.images):
        if image is not None:
            extension, data = encode_image(image)
            sample[f"{member:02d}.{extension}"] = data
    return sample


def _packed(tensors: dict[str, torch.Tensor]) -> bytes:
    return save_safetensors({k: v.contiguous() for k, v in sorted(tensors.items())})


def from_sample(sample: Mapping[str, bytes], images: bool = True, latents: bool = True) -> Group:
    """The inverse of `to_sample`. Raises parts.Damage.

    Args:
        images: False leaves previews where they are (None).
        latents: False leaves latents where they are ([G, 0]).
    """
    meta = open_json(sample["group.json"])
    statuses, reasons = statuses_of(meta)
    size = len(meta["seeds"])
    pictures: list[np.ndarray | None] = [None] * size
    for name in sample:
        if picture := PICTURE.fullmatch(name):
            if (member := int(picture[1])) >= size:
                raise Damage(f"{name}: expected members below {size}")
            if images:
                pictures[member] = np.asarray(open_picture(sample[name], name))
    if images and (lost := [i for i in range(size) if statuses[i] == status.OK and pictures[i] is None]):
        raise Damage(f"members {few([str(i) for i in lost])} are ok and have no picture")
    conditioning = open_tensors(sample["prompt.safetensors"], "prompt.safetensors")
    if "prompt_embeds" not in conditioning:
        raise Damage(f"prompt.safetensors: expected prompt_embeds, found {few(sorted(conditioning))}")
    return Group(
        key=meta["key"],
        prompt=Prompt(meta["prompt_id"], meta["prompt"], meta["target"]),
        seeds=meta["seeds"],
        latents=_latents(sample["latents.safetensors"], statuses) if latents else torch.empty(size, 0),
        conditioning=conditioning,
        images=pictures,
        statuses=statuses,
        reasons=reasons,
        measurements=meta["measurements"],
        rewards=meta["rewards"],
        unconditional=_unconditional(sample[UNCONDITIONAL], conditioning) if UNCONDITIONAL in sample else None,
    )


def _unconditional(data: bytes, conditioning: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that can stand in the place of the conditioning's. Raises parts.Damage."""
    tensors = open_tensors(data, UNCONDITIONAL)
    wanted, found = ({k: list(v.shape) for k, v in sorted(of.items())} for of in (conditioning, tensors))
    if "prompt_embeds" not in found or any(wanted.get(name) != shape for name, shape in found.items()):
        raise Damage(f"{UNCONDITIONAL}: expected prompt_embeds and others of {wanted}, found {found}")
    return tensors


def _latents(data: bytes, statuses: list[str]) -> torch.Tensor:
    """[G, C, h, w], finite where a member is ok. Raises parts.Damage."""
    tensors = open_tensors(data, "latents.safetensors")
    latents = tensors.get("latents")
    if latents is None or latents.ndim != 4 or len(latents) != len(statuses) or not latents.is_floating_point():
        found = "none" if latents is None else f"{latents.dtype} of shape {list(latents.shape)}"
        raise Damage(f"latents.safetensors: expected numbers of shape [{len(statuses)}, C, h, w], found {found}")
    # One by one: a mask would copy them all, and a group may have thousands.
    if not all(torch.isfinite(latent).all() for latent, one in zip(latents, statuses, strict=True) if one == status.OK):
        raise Damage(NOT_FINITE)
    return latents


def statuses_of(meta: dict[str, Any]) -> tuple[list[str], list[str | None]]:
    """The members' codes and reasons, out of a group.json of any version."""
    found = meta["statuses"]
    pairs = [status.split(*pair) for pair in zip(found, meta.get("reasons") or [None] * len(found), strict=True)]
    return [code for code, _ in pairs], [reason for _, reason in pairs]


def encode_image(image: np.ndarray) -> tuple[str, bytes]:
    """uint8 [H, W, 3] -> (extension, bytes)."""
    buffer = io.BytesIO()
    if max(image.shape[:2]) < LOSSLESS_BELOW:
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        return "png", buffer.getvalue()
    Image.fromarray(image).save(buffer, "WEBP", quality=90)
    return "webp", buffer.getvalue()

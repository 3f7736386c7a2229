"""Groups of random pictures, to stage and commit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gpo_data.group import Group, member_seed
from gpo_data.prompt import Prompt, prompt_id

MANIFEST: dict[str, Any] = {"fingerprint": "f", "fields": {}, "measured": {}, "recipe": {}}
COLUMNS = {"target": pa.string(), "ocr_text": pa.string()}


def make_group(index: int, size: int = 3) -> Group:
    rng = np.random.default_rng(index)
    text = f'a red sign that says "W{index}"'
    return Group(
        key=f"text-{index:08d}",
        prompt=Prompt(prompt_id(text), text, {"target": f"W{index}"}),
        seeds=[member_seed(0, "text", prompt_id(text), m) for m in range(size)],
        latents=torch.from_numpy(rng.standard_normal((size, 4, 2, 2)).astype(np.float32)),
        conditioning={"prompt_embeds": torch.ones(3, 8), "pooled_prompt_embeds": torch.zeros(8)},
        images=[rng.integers(0, 255, (16, 16, 3), dtype=np.uint8) for _ in range(size)],
        statuses=["ok"] * size,
        measurements=[{"ocr_text": f"Wé{m}"} for m in range(size)],
        rewards=[float(m) / size for m in range(size)],
    )

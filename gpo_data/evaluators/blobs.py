"""Evaluator `blobs`: how many things of the tiny world lie on the ground, counted as patches of its pixels.

A second count, of another kind than a detector's, to watch a policy that is paid for what YOLO finds: pixels nearer to
the thing's colour than to the ground's, joined where they touch (corners too), are a thing where they are enough.

    n_blobs      patches of at least LEAST pixels, of whatever shape
    blobs_exact  whether they are as many as the prompt asks for; null for prompts without a number

What always holds: no model, no randomness. Things that touch are one, and one that falls apart is several.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.evaluators.ocr import BORDER_TOLERANCE, border_color, import_cv2
from gpo_data.recipe import Recipe

LEAST = 20  # pixels; the smallest thing, a triangle in a circle of 5.5 pixels, has 45
COLUMNS: dict[str, pa.DataType] = {"n_blobs": pa.int32(), "blobs_exact": pa.bool_()}


class BlobsEvaluator:
    name = "blobs"
    version = "1-" + hashlib.blake2b(f"{LEAST} {BORDER_TOLERANCE}".encode(), digest_size=4).hexdigest()
    columns = COLUMNS
    needs = ("yolo", "cv2")

    @classmethod
    def of(cls, name: str, recipe: Recipe, threads: int | None) -> BlobsEvaluator:
        import_cv2()
        return cls()

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """images: uint8 [H, W, 3] RGB."""
        rows = []
        for image, target in zip(images, targets, strict=True):
            number, wanted = count(image), target.get("target_count")
            rows.append({"n_blobs": number, "blobs_exact": None if wanted is None else number == wanted})
        return rows


def count(image: np.ndarray) -> int:
    ground = border_color(image)
    far = np.abs(image - ground).sum(-1)
    differs = far > BORDER_TOLERANCE
    if differs.sum() < LEAST:
        return 0
    # What is furthest from the ground is the inside of things, not their blurred edges.
    color = np.median(image[far >= np.quantile(far[differs], 0.5)], axis=0)
    towards = color - ground
    thing = ((image - ground) @ towards) / (towards**2).sum() > 0.5
    _, _, sizes, _ = import_cv2().connectedComponentsWithStats(thing.astype(np.uint8), connectivity=8)
    return int((sizes[1:, -1] >= LEAST).sum())

"""Evaluator `color`: which colour of the tiny world a picture's things have.

The ground is the median colour of the picture's first and last row. A pixel that differs from it counts; it belongs
to the nearest (Euclidean, RGB) of the eight colours in gpo_data.tiny.words.COLORS and white, and those of white, the
letters and the pale seam between a thing and its ground, are left out. With P_c the pixels of colour c:

    color_seen      argmax_c |P_c|; '' where nothing but ground was found
    color_share     |P_seen| / sum_c |P_c|; 0 where nothing was found
    color_distance  |mean RGB of P_seen - COLORS[seen]|, 0 to 441; 0 where nothing was found, so look at the name first
    color_rgb       the median [R, G, B] of all P_c, each 0 to 255; [] where nothing was found. How far that is from any
                    colour is SQL's to say (`color_near`), so a picture can be judged for another prompt than its own

Needs no model. It is meant for pictures on an even ground; in a photograph it names the most common colour that the
upper and lower edge do not have, which says little about the thing that was asked for.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.evaluators.ocr import BORDER_TOLERANCE, border_color
from gpo_data.recipe import Recipe
from gpo_data.tiny.words import COLORS

NAMES = tuple(COLORS)
PALETTE = np.array([*COLORS.values(), (255, 255, 255)], dtype=np.float64)  # [9, 3], white last
MIN_SHARE = 0.002  # of the picture; fewer pixels are specks (the smallest shape is 1 in 80)

COLUMNS: dict[str, pa.DataType] = {
    "color_seen": pa.string(),
    "color_share": pa.float64(),
    "color_distance": pa.float64(),
    "color_rgb": pa.list_(pa.float64()),
}


class ColorEvaluator:
    name = "color"
    version = "2-" + hashlib.blake2b(str(COLORS).encode(), digest_size=4).hexdigest()
    columns = COLUMNS

    @classmethod
    def of(cls, name: str, recipe: Recipe, threads: int | None) -> ColorEvaluator:
        return cls()

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """images: uint8 [H, W, 3] RGB; the targets play no part in what is seen."""
        return [seen(image, border_color(image)) for image in images]


def seen(image: np.ndarray, ground: np.ndarray) -> dict[str, Any]:
    """The columns of a picture, or of a part of one; image: uint8 [H, W, 3], ground: RGB of what does not count."""
    differs = np.abs(image - ground).sum(-1) > BORDER_TOLERANCE
    pixels = image[differs].astype(np.float64)  # [N, 3]
    nearest = np.stack([((pixels - color) ** 2).sum(-1) for color in PALETTE]).argmin(0)
    counts = np.bincount(nearest, minlength=len(PALETTE))[: len(NAMES)]
    if counts.sum() < MIN_SHARE * differs.size:
        return {"color_seen": "", "color_share": 0.0, "color_distance": 0.0, "color_rgb": []}
    best = int(counts.argmax())
    distance = np.linalg.norm(pixels[nearest == best].mean(0) - PALETTE[best])
    return {
        "color_seen": NAMES[best],
        "color_share": float(counts[best] / counts.sum()),
        "color_distance": float(distance),
        "color_rgb": np.median(pixels[nearest < len(NAMES)], axis=0).tolist(),
    }

"""Evaluator `thumbnail`: the picture's mean colours on a grid of 4 x 4, to tell alike pictures from unlike ones.

    thumbnail   48 numbers from -1 (dark) to 1: the grid's rows from the top, their cells from the left, red green blue

Features of layout and colour for `train.diversity_bonus`, where no embedding of a network is measured: two pictures
whose things stand elsewhere, or whose grounds differ, are far apart, and what a thing is in detail is not seen.

What always holds: no model, no randomness; every pixel counts in one cell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.recipe import Recipe

CELLS = 4  # a side
COLUMNS: dict[str, pa.DataType] = {"thumbnail": pa.list_(pa.float64())}


class ThumbnailEvaluator:
    name = "thumbnail"
    version = "1"
    columns = COLUMNS

    @classmethod
    def of(cls, name: str, recipe: Recipe, threads: int | None) -> ThumbnailEvaluator:
        return cls()

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """images: uint8 [H, W, 3] RGB, of at least 4 x 4 pixels; the targets play no part."""
        return [{"thumbnail": small(image).round(4).flatten().tolist()} for image in images]


def small(image: np.ndarray) -> np.ndarray:
    """[4, 4, 3], -1 to 1."""
    rows = [part.mean(0) for part in np.array_split(image.astype(np.float64), CELLS, axis=0)]  # [W, 3] each
    cells = np.array([[part.mean(0) for part in np.array_split(row, CELLS, axis=0)] for row in rows])
    return cells / 127.5 - 1

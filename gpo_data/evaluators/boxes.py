"""Evaluator `boxes`: which class and which colour each thing has that the detector of `yolo:` finds.

A detection is a thing; its colour is that of color.py, looked for inside the box, against the ground of the whole
picture.

    class_seen  the class of the most things; of equally many the more confident; '' where nothing was found
    color_seen  likewise the colour of the most things; things without a colour do not count
    n_seen      things
    n_right     things with the class and the colour that were asked for; NULL where the prompt asks for neither
    things      class, color, confidence, box [x0, y0, x1, y1] in pixels; the most confident first

So `n_right = target_count and n_seen = target_count` says that a picture of the tiny world is what its prompt says.
The colours are those of the tiny world, on an even ground. The licence is that of `yolo` (AGPL-3.0).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.evaluators import color
from gpo_data.evaluators.ocr import border_color
from gpo_data.evaluators.yolo import YoloEvaluator
from gpo_data.recipe import Recipe, Yolo
from gpo_data.tasks.classes import canonical

THINGS = pa.list_(
    pa.struct(
        {"class": pa.string(), "color": pa.string(), "confidence": pa.float64(), "box": pa.list_(pa.float64())}.items()
    )
)
COLUMNS: dict[str, pa.DataType] = {
    "class_seen": pa.string(),
    "color_seen": pa.string(),
    "n_seen": pa.int32(),
    "n_right": pa.int32(),
    "things": THINGS,
}


class BoxesEvaluator:
    name = "boxes"
    columns = COLUMNS
    needs = YoloEvaluator.needs

    @classmethod
    def of(cls, name: str, recipe: Recipe, threads: int | None) -> BoxesEvaluator:
        return cls(recipe.yolo)

    def __init__(self, yolo: Yolo) -> None:
        """Finds the weights file, or raises UsageError. The detector loads at the first picture."""
        self._detector = YoloEvaluator(yolo)
        self.version = f"{color.ColorEvaluator.version}-{self._detector.version}"

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """images: uint8 [H, W, 3] RGB; targets: {"target_class", "color"} each, or less.

        Raises UsageError if the detector does not know a target's class.
        """
        found = self._detector.measure(images, targets)
        return [
            _row(image, row["detections"], target) for image, row, target in zip(images, found, targets, strict=True)
        ]

    def classes(self) -> list[str]:
        return self._detector.classes()

    def close(self) -> None:
        self._detector.close()


def _row(image: np.ndarray, detections: list[dict[str, Any]], target: dict[str, Any]) -> dict[str, Any]:
    ground = border_color(image)
    things = []
    for detection in detections:
        inside = color.seen(cut(image, detection["box"]), ground)["color_seen"]
        things.append(
            {
                "class": detection["class"],
                "color": inside,
                "confidence": detection["confidence"],
                "box": detection["box"],
            }
        )
    asked = {"class": target.get("target_class"), "color": target.get("color")}
    asked = {name: canonical(str(value)) for name, value in asked.items() if value is not None}
    right = sum(all(canonical(str(thing[name])) == value for name, value in asked.items()) for thing in things)
    return {
        "class_seen": _most([thing["class"] for thing in things]),
        "color_seen": _most([thing["color"] for thing in things if thing["color"]]),
        "n_seen": len(things),
        "n_right": right if asked else None,
        "things": things,
    }


def cut(image: np.ndarray, box: list[float]) -> np.ndarray:
    """The box's pixels, at least one."""
    height, width = image.shape[:2]
    x0, y0 = min(max(0, math.floor(box[0])), width - 1), min(max(0, math.floor(box[1])), height - 1)
    return image[y0 : max(y0 + 1, math.ceil(box[3])), x0 : max(x0 + 1, math.ceil(box[2]))]


def _most(names: list[str]) -> str:
    """The most frequent name; of equally frequent ones the first, which is the more confident."""
    return Counter(names).most_common(1)[0][0] if names else ""

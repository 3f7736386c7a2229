"""Evaluator `compose`: which clauses of a prompt of task `compose` hold, by the detections of `yolo:`.

    clauses        how many the prompt has: include and exclude
    clauses_right  how many of them hold
    clauses_wrong  what is wrong, in words, '; ' between; '' where all hold
    found          class, color, confidence, box of each thing; the most confident first

A clause of `include` holds as in GenEval (github.com/djghosh13/geneval, evaluation/evaluate_images.py): there are
`count` things of the class or more, the most confident `count` of them all have the colour, and each stands in the
relation to each of the earlier clause's. With d the difference of the centres, x to the right and y down, and w, h the
widths and heights of both: d is shortened by 0.1 (w + w') and 0.1 (h + h'), and then divided by its length before that;
beyond 0.5 it is a relation. A clause of `exclude` holds while there are fewer than `count`.

The colour of a thing is that of most pixels in the middle of its box, by the nearest of ten named colours in Lab;
GenEval asks CLIP. Detections are those of `yolo:` and not Mask2Former's, and boxes are no masks. So a share of right
pictures is comparable between runs of this toolkit, and to no number published for GenEval. The licence is that of
`yolo` (AGPL-3.0).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.errors import UsageError
from gpo_data.evaluators.boxes import THINGS, cut
from gpo_data.evaluators.ocr import BORDER_TOLERANCE, border_color
from gpo_data.evaluators.yolo import YoloEvaluator
from gpo_data.recipe import Recipe, Yolo
from gpo_data.tasks import TASKS
from gpo_data.tasks.classes import canonical
from gpo_data.tasks.compose import Clause, clauses

COLUMNS: dict[str, pa.DataType] = {
    "clauses": pa.int32(),
    "clauses_right": pa.int32(),
    "clauses_wrong": pa.string(),
    "found": THINGS,
}
# sRGB of the ten names that GenEval's prompts have, and the tiny world's teal: those of tasks/compose.py, which refuses
# prompts with others.
PALETTE = {
    "red": (205, 30, 35),
    "orange": (235, 120, 20),
    "yellow": (240, 215, 40),
    "green": (35, 135, 50),
    "blue": (35, 80, 205),
    "purple": (125, 40, 160),
    "pink": (245, 150, 185),
    "brown": (120, 72, 35),
    "black": (25, 25, 25),
    "white": (245, 245, 245),
    "teal": (0, 128, 130),
}
MIDDLE = 0.6  # of a box's sides: its corners are background
FAR = 0.1  # GenEval's POSITION_THRESHOLD


class ComposeEvaluator:
    name = "compose"
    columns = COLUMNS
    needs = YoloEvaluator.needs

    @classmethod
    def of(cls, name: str, recipe: Recipe, threads: int | None) -> ComposeEvaluator:
        if "include" not in TASKS[recipe.task.kind].columns:
            raise UsageError(f"evaluators: compose judges the clauses of task.kind compose, found {recipe.task.kind}")
        return cls(recipe.yolo)

    def __init__(self, yolo: Yolo) -> None:
        """Finds the weights file, or raises UsageError. The detector loads at the first picture."""
        self._detector = YoloEvaluator(yolo)
        self.version = f"1-{self._detector.version}"

    def classes(self) -> list[str]:
        return self._detector.classes()

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """images: uint8 [H, W, 3] RGB; targets: {"include", "exclude"} each, JSON."""
        seen = self._detector.measure(images, [{}] * len(images))
        return [
            _row(things_of(image, row["detections"]), target)
            for image, row, target in zip(images, seen, targets, strict=True)
        ]

    def close(self) -> None:
        self._detector.close()


def things_of(image: np.ndarray, detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Detections with their colours, the most confident first."""
    ground = border_color(image)
    found = [
        {
            "class": one["class"],
            "color": color_of(image, one["box"], ground),
            "confidence": one["confidence"],
            "box": one["box"],
        }
        for one in detections
    ]
    return sorted(found, key=lambda one: -one["confidence"])


def color_of(image: np.ndarray, box: list[float], ground: np.ndarray) -> str:
    """The name of most pixels in the middle of the box that the picture's upper and lower edge do not have."""
    x0, y0, x1, y1 = box
    inset_x, inset_y = (x1 - x0) * (1 - MIDDLE) / 2, (y1 - y0) * (1 - MIDDLE) / 2
    pixels = cut(image, [x0 + inset_x, y0 + inset_y, x1 - inset_x, y1 - inset_y]).reshape(-1, 3)
    differs = np.abs(pixels - ground).sum(-1) > BORDER_TOLERANCE
    pixels = pixels[differs] if differs.mean() > 0.2 else pixels  # a thing may have the ground's colour
    names = list(PALETTE)
    colors = _lab(np.array(list(PALETTE.values()), dtype=np.float64))
    nearest = ((_lab(pixels.astype(np.float64))[:, None] - colors) ** 2).sum(-1).argmin(1)
    return names[int(np.bincount(nearest, minlength=len(names)).argmax())]


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0 to 255, [N, 3] -> CIE Lab under D65."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def _row(things: list[dict[str, Any]], target: dict[str, Any]) -> dict[str, Any]:
    include, exclude = clauses(target.get("include")), clauses(target.get("exclude"))
    wrong: list[str] = []
    matched: list[list[dict[str, Any]] | None] = []
    for clause in include:
        those = _those(things, clause)
        problem = _problem(clause, those, matched)
        matched.append(None if problem else those[: clause.count])
        wrong += [problem] if problem else []
    for clause in exclude:
        if (number := len(_those(things, clause))) >= clause.count:
            wrong.append(f"{number} {clause.name}, expected fewer than {clause.count}")
    total = len(include) + len(exclude)
    return {
        "clauses": total,
        "clauses_right": total - len(wrong),
        "clauses_wrong": "; ".join(wrong),
        "found": things,
    }


def _those(things: list[dict[str, Any]], clause: Clause) -> list[dict[str, Any]]:
    return [one for one in things if canonical(one["class"]) == canonical(clause.name)]


def _problem(clause: Clause, those: list[dict[str, Any]], matched: list[list[dict[str, Any]] | None]) -> str | None:
    if len(those) < clause.count:
        return f"{len(those)} {clause.name}, expected {clause.count}"
    chosen = those[: clause.count]
    if clause.color is not None and any(one["color"] != clause.color for one in chosen):
        return f"{clause.name} {', '.join(one['color'] for one in chosen)}, expected {clause.color}"
    if clause.position is not None:
        relation, index = clause.position
        others = matched[index]
        if others is None:
            return f"nothing for {clause.name} to be {relation}"
        for one in chosen:
            for other in others:
                if relation not in (seen := relations(one["box"], other["box"])):
                    return f"{clause.name} {' and '.join(sorted(seen)) or 'beside'}, expected {relation}"
    return None


def relations(a: list[float], b: list[float]) -> set[str]:
    """Where box a is, seen from b."""
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i]) for i in (0, 1)]
    length = math.hypot(*offset)
    if length == 0:
        return set()
    x, y = (math.copysign(max(abs(d) - FAR * s, 0.0), d) / length for d, s in zip(offset, sizes, strict=True))
    named = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in named.items() if holds}

"""Evaluator `glyphs`: the word on a sign of the tiny world, read by comparing it with the fonts it is drawn in.

A second reader, of another kind than a neural one, to watch a policy that is paid for what OCR reads. The sign's pixels
become ink a in [0, 1], from the sign's colour to white, and 0 outside the sign. Letters T [h, w] of the tiny world's
fonts and sizes (tiny/render.py) stand one pitch apart; the word and its place are those with the least squared
difference to the ink, which is the largest

    score(x, y, n) = sum_{k < n} max_T (2 <P_k, T> - |T|^2),    P_k: the ink at (x + k pitch, y), give or take a pixel

The letters of a word may be of different fonts, as a model draws them, and are of one pitch.

    glyphs_text        the word; '' where there is no sign, or nothing on it
    glyphs_confidence  cosine of the ink and the letters at their places, 0 to 1
    glyphs_exact       whether the word is the target; null for prompts without one

What always holds: no model, no randomness; it reads capitals A-Z, up to five of them, and knows no other lettering.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.evaluators.ocr import border_color, content_box
from gpo_data.recipe import Recipe
from gpo_data.tiny import render
from gpo_data.tiny.words import LETTERS, MAX_LETTERS

COLUMNS: dict[str, pa.DataType] = {
    "glyphs_text": pa.string(),
    "glyphs_confidence": pa.float64(),
    "glyphs_exact": pa.bool_(),
}
MARGIN = render.MARGIN - 2  # rows at the sign's upper and lower edge that have no letters, whatever is blurred
LEAST = 0.15  # of a letter's own |T|^2: what scores less is no letter but a mark


class GlyphsEvaluator:
    name = "glyphs"
    version = "1-" + hashlib.blake2b(repr((render.LOOKS, MARGIN, LEAST)).encode(), digest_size=4).hexdigest()
    columns = COLUMNS

    @classmethod
    def of(cls, name: str, recipe: Recipe, threads: int | None) -> GlyphsEvaluator:
        return cls()

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """images: uint8 [H, W, 3] RGB."""
        return [_row(*read(image), target.get("target")) for image, target in zip(images, targets, strict=True)]


def _row(text: str, confidence: float, target: Any) -> dict[str, Any]:
    exact = text == target.upper() if isinstance(target, str) else None
    return {"glyphs_text": text, "glyphs_confidence": confidence, "glyphs_exact": exact}


def read(image: np.ndarray) -> tuple[str, float]:
    """The word, and how much it looks like it."""
    ink = ink_of(image)
    best, text, cosine = 0.0, "", 0.0
    for pitch, fonts in _letters().items():
        found = [_scores(ink, letters) for letters in fonts]
        rows, columns = (min(one.shape[axis] for one in found) for axis in (0, 1))
        if min(rows, columns) < 1:
            continue
        scores = np.concatenate([one[:rows, :columns] for one in found], axis=-1)
        sizes = np.concatenate([(letters**2).sum((1, 2)) for letters in fonts])
        letter, score = scores.argmax(-1), scores.max(-1)
        size = sizes[letter]
        score = np.where(score > LEAST * size, score, -np.inf)
        total = np.zeros_like(score)  # [y, x]: of the letters that begin at x, one more each time
        for n in range(min(MAX_LETTERS, 1 + (columns - 1) // pitch)):
            reach = columns - n * pitch
            total = total[:, :reach] + score[:, n * pitch :]
            y, x = np.unravel_index(int(total.argmax()), total.shape)
            if total[y, x] > best:
                places = x + pitch * np.arange(n + 1)
                best, text = float(total[y, x]), "".join(LETTERS[i % len(LETTERS)] for i in letter[y, places])
                drawn = float(size[y, places].sum())  # |T|^2, and best + |T|^2 = 2 <ink, T>
                cosine = (best + drawn) / 2 / float(np.sqrt(drawn * (ink**2).sum()))
    return text, round(min(1.0, cosine), 5)


def _scores(ink: np.ndarray, letters: np.ndarray) -> np.ndarray:
    """[y, x, 26] of each letter with its upper left corner there, or a pixel beside."""
    height, pitch = letters.shape[1:]
    if min(ink.shape[0] - height, ink.shape[1] - pitch) < 0:
        return np.empty((0, 0, len(letters)))
    patches = np.lib.stride_tricks.sliding_window_view(ink, (height, pitch))
    return _wobbled(2 * np.tensordot(patches, letters, ((2, 3), (1, 2))) - (letters**2).sum((1, 2)))


def _wobbled(scores: np.ndarray) -> np.ndarray:
    """[y, x, 26]: each letter may stand a pixel beside its place, in either direction."""
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (1, 1)
        wide = np.pad(scores, pad, constant_values=-np.inf)
        scores = np.lib.stride_tricks.sliding_window_view(wide, 3, axis=axis).max(-1)
    return scores


def ink_of(image: np.ndarray) -> np.ndarray:
    """[h, W]: how white the sign is at a pixel, 0 at its own colour and outside of it; of the rows around its word."""
    ink = np.zeros(image.shape[:2])
    x0, y0, x1, y1 = content_box(image)
    if y1 - y0 <= 2 * MARGIN or np.ptp(image.reshape(-1, 3), axis=0).max() < 64:
        return ink
    sign = image[y0:y1, x0:x1].astype(np.float64)
    edges = np.concatenate([sign[1 : MARGIN - 1], sign[1 - MARGIN : -1]]).reshape(-1, 3)
    color = np.median(edges, axis=0)
    towards = 255.0 - color
    if (towards**2).sum() < 64**2:  # white itself
        return ink
    inner = ((sign[MARGIN:-MARGIN] - color) @ towards) / (towards**2).sum()
    ink[y0 + MARGIN : y1 - MARGIN, x0:x1] = inner.clip(0, 1)
    outside = np.abs(image - border_color(image)).sum(-1) < np.abs(image - color).sum(-1)
    # At the left and right edge what is as pale as the ground is ground, as far as it reaches in.
    for line, pale in zip(ink, outside, strict=True):
        left, right = (int(np.argmin(side)) for side in (pale[x0:x1], pale[x0:x1][::-1]))
        line[x0 : x0 + min(left, 3)] = 0
        line[x1 - min(right, 3) : x1] = 0
    return ink[max(0, y0 + MARGIN - 3) : y1 - MARGIN + 5]


@functools.cache
def _letters() -> dict[int, list[np.ndarray]]:
    """{pitch: of each font the ink [26, h, pitch] of every capital}."""
    found: dict[int, list[np.ndarray]] = {}
    for look, (_, _, pitch) in enumerate(render.LOOKS):
        masks = render.letter_masks(look)
        found.setdefault(pitch, []).append(np.stack([np.asarray(masks[one], np.float64) / 255 for one in LETTERS]))
    return found

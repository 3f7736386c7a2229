"""The second reader: every word of the tiny world as it is rendered, and what it says of other pictures."""

from __future__ import annotations

import numpy as np
import pytest

from gpo_data.evaluators.glyphs import GlyphsEvaluator, read
from gpo_data.tiny.render import LOOKS, render_text, sample_scene


def test_it_reads_what_the_renderer_writes() -> None:
    rng = np.random.default_rng(5)
    drawn = [sample_scene(rng, "text", held=None) for _ in range(100)]
    assert [read(picture)[0] for picture, _, _ in drawn] == [target["word"] for _, _, target in drawn]


@pytest.mark.parametrize("look", range(len(LOOKS)))
def test_it_reads_every_look_and_letter(look: int) -> None:
    for word in ("ABCDE", "FGHIJ", "KLMNO", "PQRST", "UVWXY", "ZZ", "QO"):
        text, confidence = read(render_text(word, color="teal", look=look, seed=look))
        assert text == word and confidence > 0.9


def test_it_reads_through_noise_and_blur_and_not_where_there_is_nothing() -> None:
    picture = render_text("KITE", color="red", seed=1).astype(np.float64)
    blurred = (picture + np.roll(picture, 1, 0) + np.roll(picture, 1, 1)) / 3
    noisy = blurred + np.random.default_rng(0).normal(0, 5, picture.shape)
    text, confidence = read(noisy.clip(0, 255).astype(np.uint8))
    assert text == "KITE" and confidence < read(picture.astype(np.uint8))[1]
    blank = np.full((64, 64, 3), 127, np.uint8)
    assert read(blank) == ("", 0.0) and read(np.zeros((512, 512, 3), np.uint8)) == ("", 0.0)
    sign = render_text("II", color="blue", seed=0).copy()
    sign[(sign > 250).all(-1)] = (35, 70, 205)  # the letters painted over
    assert read(sign) == ("", 0.0)


def test_the_target_says_what_is_exact_and_not_what_is_read() -> None:
    picture = render_text("KITE", color="red", seed=1)
    rows = GlyphsEvaluator().measure([picture] * 3, [{"target": "Kite"}, {"target": "KITES"}, {"target_count": 3}])
    assert [row["glyphs_exact"] for row in rows] == [True, False, None]
    assert {row["glyphs_text"] for row in rows} == {"KITE"}

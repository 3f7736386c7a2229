"""The second count: every number of things as it is rendered, and what it says of other pictures."""

from __future__ import annotations

import numpy as np

from gpo_data.evaluators.blobs import BlobsEvaluator, count
from gpo_data.tiny.render import render_count, sample_scene


def test_it_counts_what_the_renderer_draws() -> None:
    rng = np.random.default_rng(5)
    drawn = [sample_scene(rng, "count", held=None) for _ in range(200)]
    assert [count(picture) for picture, _, _ in drawn] == [target["n"] for _, _, target in drawn]


def test_things_that_touch_are_one_and_an_empty_picture_has_none() -> None:
    picture, boxes = render_count("square", 2, "red", np.random.default_rng(0))
    (a, b, *_), (c, d, *_) = boxes
    bridged = picture.copy()
    left, right = sorted((round(a) + 3, round(c) + 3))
    bridged[round(b) + 3 : round(b) + 6, left:right] = bridged[round(b) + 4, round(a) + 4]
    bridged[slice(*sorted((round(b) + 3, round(d) + 3))), round(c) + 2 : round(c) + 5] = picture[
        round(b) + 4, round(a) + 4
    ]
    assert count(picture) == 2 and count(bridged) == 1
    assert count(np.full((64, 64, 3), 127, np.uint8)) == 0
    rows = BlobsEvaluator().measure([picture] * 3, [{"target_count": 2}, {"target_count": 3}, {"target": "KITE"}])
    assert rows == [{"n_blobs": 2, "blobs_exact": exact} for exact in (True, False, None)]

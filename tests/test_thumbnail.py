"""The picture as 4 x 4 colours, and that the diversity bonus can read it."""

from __future__ import annotations

import numpy as np

from gpo_data.evaluators.thumbnail import ThumbnailEvaluator
from gpo_data.lake.novelty import bonus


def thumbnails(*images: np.ndarray) -> np.ndarray:
    return np.array([row["thumbnail"] for row in ThumbnailEvaluator().measure(list(images), [{}] * len(images))])


def test_each_cell_is_the_mean_of_its_pixels() -> None:
    image = np.zeros((10, 12, 3), np.uint8)  # rows of 3, 3, 2, 2 pixels
    image[:3, :3] = (255, 0, 51)
    image[8:, 9:12] = 255
    (found,) = thumbnails(image)
    cells = found.reshape(4, 4, 3)
    assert cells[0, 0].tolist() == [1, -1, -0.6] and cells[3, 3].tolist() == [1, 1, 1]
    assert (np.delete(found.reshape(16, 3), [0, 15], axis=0) == -1).all()


def test_a_picture_on_another_ground_is_the_new_one_of_its_group() -> None:
    white, green = np.full((64, 64, 3), 245, np.uint8), np.full((64, 64, 3), (222, 240, 222), np.uint8)
    images = [white.copy(), white.copy(), green, white.copy()]
    for at, image in enumerate(images):
        image[20 + at : 40 + at, 10:50] = (200, 30, 30)
    factor = bonus(np.zeros(4, int), np.array([1.0, 1.0, 1.0, -3.0]), thumbnails(*images))
    assert factor[2] > 3 * factor[:2].max() and factor[3] == 1

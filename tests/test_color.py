"""The colour evaluator on rendered scenes: it names the colour that was asked for, and nothing where there is none."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from gpo_data.evaluators import build
from gpo_data.evaluators.color import ColorEvaluator
from gpo_data.lake import manifest as dataset
from gpo_data.lake import rewards
from gpo_data.recipe import Recipe
from gpo_data.tiny.render import BACKGROUNDS, render_text, sample_scene
from gpo_data.tiny.words import COLORS

COLOR = ColorEvaluator()


@pytest.mark.parametrize("task", ["text", "count"])
def test_rendered_scenes_have_the_colour_asked_for(task):
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, task, held=None) for _ in range(800)]
    rows = COLOR.measure([picture for picture, _, _ in scenes], [{}] * len(scenes))
    pa.Table.from_pylist(rows, schema=pa.schema(list(COLOR.columns.items())))
    right = [row["color_seen"] == target["color"] for row, (_, _, target) in zip(rows, scenes, strict=True)]
    assert np.mean(right) >= 0.99
    # The rest are the seams of things and letters, which take the colour nearest to a mixture.
    assert np.mean([row["color_share"] for row in rows]) > 0.85
    assert np.mean([row["color_distance"] for row in rows]) < 15


@pytest.mark.parametrize("ground", [*BACKGROUNDS, (0, 0, 0), (255, 255, 255)])
def test_nothing_but_ground_has_no_colour(ground):
    blank = np.full((64, 64, 3), ground, np.uint8)
    blank[20, 30] = (205, 30, 35)  # a speck
    assert COLOR.measure([blank], [{}]) == [
        {"color_seen": "", "color_share": 0.0, "color_distance": 0.0, "color_rgb": []}
    ]


def test_white_letters_do_not_count_and_the_larger_colour_wins():
    picture = np.full((64, 64, 3), 240, np.uint8)
    picture[8:40, 8:40] = COLORS["blue"]
    picture[10:36, 10:36] = 255
    picture[44:54, 8:18] = COLORS["red"]
    (row,) = COLOR.measure([picture], [{}])
    blue = 32 * 32 - 26 * 26
    assert row == {
        "color_seen": "blue",
        "color_share": blue / (blue + 100),
        "color_distance": 0.0,
        "color_rgb": list(COLORS["blue"]),
    }


def test_the_distance_is_that_of_the_mean_colour():
    picture = np.full((64, 64, 3), 240, np.uint8)
    picture[20:40, 20:40] = np.add(COLORS["teal"], (3, 0, 4))
    assert COLOR.measure([picture], [{}])[0]["color_distance"] == pytest.approx(5)


def test_the_palette_of_sql_is_the_tiny_worlds():
    con = duckdb.connect()
    rewards.add_macros(con)
    for name, rgb in COLORS.items():
        assert con.execute("SELECT _palette(?)", [name]).fetchone() == (list(rgb),)


def test_a_recipe_names_it_and_it_has_no_settings():
    recipe = Recipe(evaluators=["color"], reward="color_exact(color, color_seen)")
    assert [evaluator.name for evaluator in build(recipe)] == ["image_stats", "color"]
    assert dataset.measured(recipe) == {"evaluators": ["color"], "reward": recipe.reward}
    sign = render_text("KITE", color="teal", seed=0)
    assert build(recipe)[1].measure([sign], [{}])[0]["color_seen"] == "teal"

"""Task `align`: prompts without a target, and in the tiny world the class and the colour of what is in the boxes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from gpo_data import audit, recipe
from gpo_data.errors import UsageError
from gpo_data.evaluators import build
from gpo_data.generation.generate import draw
from gpo_data.lake import manifest as dataset
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe, Task, Yolo
from gpo_data.split import part_of
from gpo_data.tasks import align, count
from gpo_data.tiny.render import sample_scene
from gpo_data.tiny.words import COLORS

YOLO = Yolo(weights="tiny", image_size=128)


def prompts(seed: int = 0, **spec: object) -> list[Prompt]:
    return align.prompts(Task(kind="align", **spec), seed)  # type: ignore[arg-type]


def test_scenes_are_a_third_of_each_aspect() -> None:
    found = prompts(grammar="scenes", num_prompts=90)
    assert Counter(p.target["aspect"] for p in found) == {"binding": 30, "position": 30, "style": 30}
    every = prompts(grammar="scenes", num_prompts=None, split="all")
    assert len({p.text for p in every}) == len(every) > 10_000
    assert any("an orange umbrella" in p.text for p in every) and not any("a orange" in p.text for p in every)


def test_the_split_is_by_the_sentence() -> None:
    sides = {
        split: {p.text for p in prompts(grammar="scenes", num_prompts=300, split=split)}
        for split in ("train", "validation", "heldout")
    }
    assert all(part_of(text.lower()) == split for split, texts in sides.items() for text in texts)


def test_signs_are_the_counting_prompts_with_their_split() -> None:
    for split in ("train", "validation", "heldout"):
        spec = {"num_prompts": None, "split": split}
        assert prompts(**spec) == count.prompts(Task(kind="count", **spec), 0)  # type: ignore[arg-type]


def test_own_prompts_need_nothing_but_the_sentence(tmp_path: Path) -> None:
    lines = [f"a cat with {n} hats" for n in range(40)]
    path = tmp_path / "own.txt"
    path.write_text("\n".join(lines))
    sides = [prompts(prompts=str(path), num_prompts=None, split=s) for s in ("train", "validation", "heldout")]
    assert sorted(p.text for side in sides for p in side) == sorted(lines) and all(sides)
    assert all(p.target == {} for side in sides for p in side)
    path.write_text("a cat\na dog\na cat\n")
    with pytest.raises(UsageError, match=r"own\.txt:3: the same prompt as .*own\.txt:1"):
        prompts(prompts=str(path), num_prompts=None, split="all")


def test_rows_keep_what_they_say_of_the_picture(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a dog"},
        {"prompt": "two red cups", "class": "cup", "target": 2, "color": "red", "aspect": "binding"},
        {"prompt": "a word", "target": "KITE"},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [p.target for p in prompts(prompts=str(path), num_prompts=None, split="all")] == [
        {},
        {"target_class": "cup", "target_count": 2, "color": "red", "aspect": "binding"},
        {},
    ]


def test_boxes_of_rendered_scenes_hold_what_was_asked() -> None:
    (_, boxes) = build(Recipe(evaluators=["boxes"], reward="1", task=Task(kind="align"), yolo=YOLO))
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, "count", held=None) for _ in range(120)]
    targets = [{"target_class": t["shape"], "color": t["color"]} for _, _, t in scenes]
    rows = boxes.measure([picture for picture, _, _ in scenes], targets)
    pa.Table.from_pylist(rows, schema=pa.schema(list(boxes.columns.items())))
    right = {"class_seen": 0, "color_seen": 0, "n_right": 0, "n_seen": 0}
    for row, (_, _, target) in zip(rows, scenes, strict=True):
        expected = {"class_seen": target["shape"], "color_seen": target["color"], "n_right": target["n"]}
        for name, value in (expected | {"n_seen": target["n"]}).items():
            right[name] += row[name] == value
    assert min(right["class_seen"], right["color_seen"]) >= 0.99 * len(rows)
    assert min(right["n_right"], right["n_seen"]) >= 0.95 * len(rows)


def test_a_thing_has_its_own_class_and_colour() -> None:
    (_, boxes) = build(Recipe(evaluators=["boxes"], reward="1", task=Task(kind="align"), yolo=YOLO))
    picture = Image.new("RGB", (64, 64), (245, 245, 240))
    draw_on = ImageDraw.Draw(picture)
    for x in (6, 26):
        draw_on.ellipse((x, 8, x + 14, 22), fill=COLORS["red"])
    draw_on.ellipse((46, 8, 60, 22), fill=COLORS["teal"])
    draw_on.rectangle((20, 40, 33, 53), fill=COLORS["red"])
    image, blank = np.asarray(picture), np.full((64, 64, 3), 240, np.uint8)
    asked = [{"target_class": "circle", "color": "red"}, {"target_class": "circle"}, {"color": "red"}, {}]
    rows = boxes.measure([image] * 4, asked)
    assert [row["n_right"] for row in rows] == [2, 3, 3, None]
    assert (rows[0]["class_seen"], rows[0]["color_seen"], rows[0]["n_seen"]) == ("circle", "red", 4)
    found = Counter((thing["class"], thing["color"]) for thing in rows[0]["things"])
    assert found == {("circle", "red"): 2, ("circle", "teal"): 1, ("square", "red"): 1}
    assert boxes.measure([blank], asked[:1]) == [
        {"class_seen": "", "color_seen": "", "n_seen": 0, "n_right": 0, "things": []}
    ]


def test_draws_and_audits(random_sd3: Path, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[1] / "recipes" / "align-tiny.yaml"
    changes = {
        "model": random_sd3,
        "lake": tmp_path,
        "group_size": 4,
        "task.num_prompts": 3,
        "sampler.num_inference_steps": 2,
        "sampler.dtype": "float32",
        "sampler.device": "cpu",
    }
    made = recipe.load(shipped, [f"--{key}={value}" for key, value in changes.items()])
    assert dataset.measured(made)["boxes.weights"] == "tiny"
    folder = draw(made, Console(quiet=True))
    rows = pq.read_table(folder / "shard-000000.parquet").to_pylist()
    assert len(rows) == 12 and all(row["status"] == "ok" and 0 <= row["reward"] <= 1 for row in rows)
    assert rows[0]["group_key"] == "align-00000000" and {"target_class", "color", "n_right"} <= rows[0].keys()
    assert audit.run(made.lake, str(made.name), None, None).is_file()

"""The recipes of recipes/benchmarks/: each is found by name, and plans a file in its benchmark's format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from gpo_data import recipe
from gpo_data.generation.reward import expect_declared_reward
from gpo_data.recipe.files import known_names
from gpo_data.tasks import TASKS, extras
from gpo_train.evaluation.prompts import choose

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "recipes/benchmarks").glob("*.yaml"))
QUOTED = 'A wall with a poster that reads "Open Late", and a sign that says "Fresh Bread".'
GENEVAL = [
    {"tag": "counting", "include": [{"class": "bus", "count": n}], "prompt": f"a photo of {n} buses"} for n in (2, 3)
]
LONG = [{"category": "sign", "length": "short", "prompt": QUOTED, "text": ["Open Late", "Fresh Bread"], "prompt_id": 0}]
REGIONS = [{"index": 0, "prompt": QUOTED, "carrier_list": ["poster", "sign"], "sentence_list": LONG[0]["text"]}]
# Of each benchmark: the name of its file, a few lines in its format, and how many prompts they are.
FILES = {
    "geneval": ("metadata.jsonl", "".join(json.dumps(one) + "\n" for one in GENEVAL), 2),
    "geneval-flow": ("metadata.jsonl", "".join(json.dumps(one) + "\n" for one in GENEVAL * 4), 2),
    "ocr-flow": ("test.txt", 'A runway with a backdrop displaying "Spring 2024".\nA ring that says "Yours".\n', 2),
    "longtext": ("text_prompts.jsonl", "".join(json.dumps(one) + "\n" for one in LONG), 1),
    "oneig-text": (
        "text_content.csv",
        ",id,prompt_en,text_content\n"
        + '0,000,"A poster that reads ""Open Late"" and ""Half Price"".","[\'Open Late\', \'Half Price\']"\n',
        1,
    ),
    "cvtg-2k": ("2.json", json.dumps({"data_list": REGIONS}), 1),
    "t2i-compbench": ("color_val.txt", "a green bench and a blue bowl\na red car\na red car\n", 2),
    "dpg-bench": (
        "dpg_bench.csv",
        "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
        "question_natural_language\n"
        "0,A bowl of eight cabbages.,,1,0,entity,whole,entity - whole (bowl),Is there a bowl?\n"
        "0,A bowl of eight cabbages.,,2,1,other,count,other - count (cabbages),Are there eight cabbages?\n",
        1,
    ),
    "partiprompts": ("PartiPrompts.tsv", "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tBiology\n", 1),
    "unigenbench": (
        "test_prompts_en.csv",
        'index,prompt_en,sub_dims_en\n0,"Two pandas, tasting bamboo.","{""Primary Categories"": ""Art""}"\n',
        1,
    ),
    "drawbench": ("drawbench.csv", "Prompts,Category\nA red colored car.,Colors\nA black dog.,Colors\n", 2),
}


def test_every_recipe_has_a_file_here() -> None:
    assert sorted(f"{name}-sd35m" for name in FILES) == NAMES and {*NAMES} <= known_names().keys()


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_plans_its_benchmarks_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, content, count = FILES[name]
    Path(file).write_text(content)
    made = recipe.load(f"{name}-sd35m", ["--eval.prompts", file])
    chosen = choose(made, set(), tmp_path)
    assert len(chosen.keys) == count and chosen.part == "file"
    drawn = recipe.load(f"{name}-sd35m", ["--task.prompts", file])
    assert drawn.task.split == "all" and drawn.task.num_prompts is None
    (first, *_) = prompts = TASKS[drawn.task.kind].prompts(drawn.task, 0)
    expect_declared_reward(drawn, extras.types_of(prompts, TASKS[drawn.task.kind].columns))
    if name in ("longtext", "cvtg-2k"):
        assert first.target["target"] == "Open Late\nFresh Bread"
    if name == "dpg-bench":
        asked = drawn.vlm.questions_column
        assert asked and json.loads(str(first.target[asked])) == ["Is there a bowl?", "Are there eight cabbages?"]
    head = (ROOT / f"recipes/benchmarks/{name}-sd35m.yaml").read_text()
    assert all(f"# {word}" in head for word in ("FILE", "Judge", "Comparable to"))


SENTENCES = """
    Spring Collection 2024|Step Goal Achieved|Forever Yours|Caution: Wet Floor|Recycle Today|Open 24 Hours|Room 42
    Best Seller|Happy Birthday|No Entry|Speed Limit 50|Live Music Tonight|Free Refills|Sold Out|Grand Opening
    Do Not Disturb|Keep Refrigerated|Flight 815 Boarding|Wish You Were Here|Game Over|Made in Japan|Stay Hydrated
    Beware of Dog|Handle With Care
"""
TARGETS = [one for line in SENTENCES.strip().splitlines() for one in line.strip().split("|")]


def perfect(text: str) -> np.ndarray:
    """Black on light grey, as wide as it has to be within 512 pixels."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    size = 56
    while ImageFont.truetype(path, size).getlength(text) > 472:
        size -= 2
    image = Image.new("RGB", (512, 512), (225, 225, 225))
    ImageDraw.Draw(image).text((256, 256), text, fill="black", font=ImageFont.truetype(path, size), anchor="mm")
    return np.asarray(image)


def scores(targets: list[str]) -> list[float | None]:
    from gpo_data.evaluators.ocr import OcrEvaluator
    from gpo_data.lake.rewards import score
    from gpo_data.recipe import Ocr

    made = OcrEvaluator(dataclasses.replace(Ocr(), mode="scene"))
    rows = made.measure([perfect(one) for one in targets], [{"target": one} for one in targets])
    joined = [{"target": one, "ocr_text": row["ocr_text"]} for one, row in zip(targets, rows, strict=True)]
    return score(joined, "text_edit_lenient(target, ocr_text)")


def test_perfect_pictures_of_texts_like_flow_grpos_score_1() -> None:
    assert len(TARGETS) == 24
    found = scores(TARGETS)
    assert [text for text, one in zip(TARGETS, found, strict=True) if one != 1] == []


@pytest.mark.slow
def test_perfect_pictures_of_many_more() -> None:
    """Each is one of `task.grammar: scenes`' texts; the reader may take a few letters for others."""
    from gpo_data.tasks import text, unseen

    found = scores(sorted({*text.WORDS, *unseen.WORDS}))
    assert len(found) > 300 and np.mean([one == 1 for one in found]) >= 0.98

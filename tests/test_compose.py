"""Task and evaluator `compose`: GenEval's clauses, on rendered scenes of two classes whose truth is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpo_data.errors import UsageError
from gpo_data.evaluators.compose import PALETTE, ComposeEvaluator, relations
from gpo_data.generation.remote import actors_of
from gpo_data.lake.rewards import score
from gpo_data.recipe import Recipe, Task, Yolo
from gpo_data.tasks import TASKS, compose
from gpo_data.tiny import render
from gpo_data.tiny.words import COLORS, SHAPES

LINES = [
    {"tag": "single", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
    {
        "tag": "position",
        "include": [{"class": "sink", "count": 1}, {"class": "tie", "count": 1, "position": ["above", 0]}],
        "prompt": "a photo of a tie above a sink",
    },
    {
        "tag": "counting",
        "include": [{"class": "bus", "count": 2}],
        "exclude": [{"class": "bus", "count": 3}],
        "prompt": "a photo of two buses",
    },
]


def prompts(path: Path) -> Any:
    return TASKS["compose"].prompts(Task("compose", prompts=str(path), num_prompts=None, split="all"), 0)


def test_lines_of_metadata_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "meta.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    found = prompts(path)
    assert [p.target["tag"] for p in found] == ["single", "position", "counting"]
    assert [json.loads(p.target["include"]) for p in found] == [line["include"] for line in LINES]
    assert json.loads(found[2].target["exclude"]) == LINES[2]["exclude"] and "exclude" not in found[0].target
    assert compose.classes_of(found[1]) == {"sink", "tie"}
    path.write_text(json.dumps(LINES[0] | {"include": [{"class": "cow", "count": 0}]}))
    with pytest.raises(UsageError, match=r"meta\.jsonl:1: include: 0\.count: .*greater than or equal to 1"):
        prompts(path)
    path.write_text(json.dumps(LINES[0] | {"include": [{"class": "cow", "count": 1, "position": ["above", 0]}]}))
    with pytest.raises(UsageError, match=r"include: 0\.position: expected the index of an earlier clause"):
        prompts(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"include": 3}, r"include: expected a list of clauses, as in .*, found 3"),
        ({"include": {"class": "cow", "count": 1}}, r"include: expected a list of clauses"),
        ({"include": "two cows"}, r"include: expected a list of clauses as JSON, found 'two cows'"),
        ({"include": [3]}, r"include: 0: .*found 3"),
        ({"include": math.nan}, r"include is empty"),
        ({"include": []}, r"include is empty"),
        ({"include": [{"class": "cow", "count": 1}], "exclude": 3}, r"exclude: expected a list of clauses"),
        (
            {"include": [{"class": "cow", "count": 1, "color": "gray"}]},
            r"include: 0\.color: expected one of red, .*'gray'",
        ),
        (
            {"include": [{"class": "cow", "count": 1}], "exclude": [{"class": "cow", "count": 2, "color": "mauve"}]},
            r"exclude: 0\.color: expected one of red, .*'mauve'",
        ),
    ],
)
def test_a_row_that_no_evaluator_can_judge_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "meta.jsonl"
    path.write_text(json.dumps({"prompt": "a cow"} | row))
    with pytest.raises(UsageError, match=rf"meta\.jsonl:1: {message}"):
        prompts(path)


@pytest.mark.parametrize("missing", [None, math.nan, "", "null", "NaN", []])
def test_what_is_missing_is_not_there(tmp_path: Path, missing: Any) -> None:
    clause = {"class": "cow", "count": 1}
    path = tmp_path / "meta.jsonl"
    path.write_text(json.dumps({"prompt": "a cow", "include": [clause | {"color": math.nan}], "exclude": missing}))
    (found,) = prompts(path)
    assert found.target == {"include": json.dumps([clause])}


def test_columns_and_colours_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "meta.csv"
    include, exclude = (
        '[{""class"": ""cow"", ""count"": 1, ""color"": ""Red""}]',
        '[{""class"": ""cow"", ""count"": 2}]',
    )
    path.write_text(f'prompt,Include,Exclude\na red cow,"{include}","{exclude}"\n')
    (found,) = prompts(path)
    assert {name: json.loads(str(value)) for name, value in found.target.items()} == {
        "include": [{"class": "cow", "count": 1, "color": "red"}],
        "exclude": [{"class": "cow", "count": 2}],
    }


def test_the_task_knows_the_colours_that_the_evaluator_names() -> None:
    assert tuple(PALETTE) == compose.COLORS


def test_sentences_with_several_classes() -> None:
    target = compose.from_sentence("three cats and two dogs on a couch")
    assert json.loads(str(target["include"])) == [
        {"class": "cat", "count": 3},
        {"class": "dog", "count": 2},
        {"class": "couch", "count": 1},
    ]
    assert json.loads(str(target["exclude"])) == [{"class": "cat", "count": 4}, {"class": "dog", "count": 3}]


def test_a_class_that_is_named_twice_is_one_clause() -> None:
    target = compose.from_sentence("two red apples and three green apples")
    assert json.loads(str(target["include"])) == [{"class": "apple", "count": 5}]
    assert json.loads(str(target["exclude"])) == [{"class": "apple", "count": 6}]


def test_a_place_is_not_the_thing_it_is_named_after() -> None:
    target = compose.from_sentence("a train station with two trains")
    assert json.loads(str(target["include"])) == [{"class": "train", "count": 2}]


def test_synonyms_are_on_one_side_of_the_split() -> None:
    def key(*names: str) -> str:
        every = [{"class": name, "count": 1} for name in names]
        return compose.content({"include": json.dumps(every), "exclude": json.dumps(every)})

    assert key("television") == key("tv") == "1 tv"
    assert key("television", "Sofa") == key("tv", "couch")
    every = '[{"class": "tv", "count": 1}, {"class": "couch", "count": 1}]'
    assert key("tv", "couch") == f"{every} without {every}"


@pytest.mark.parametrize(
    ("a", "wanted"),
    [
        ([0, 40, 10, 50], {"left of"}),
        ([90, 40, 100, 50], {"right of"}),
        ([45, 0, 55, 10], {"above"}),
        ([45, 90, 55, 99], {"below"}),
        ([46, 46, 54, 54], set()),
        ([0, 0, 10, 10], {"left of", "above"}),
    ],
)
def test_relations(a: list[float], wanted: set[str]) -> None:
    assert relations(a, [45, 45, 55, 55]) == wanted


def scene(rng: np.random.Generator) -> tuple[np.ndarray, dict[str, str], bool]:
    """(a picture of two classes, its target, whether all clauses hold): half of the targets are made wrong."""
    one, other = rng.permutation(SHAPES)[:2]
    colors = [str(c) for c in rng.permutation([c for c in COLORS if c not in ("black", "brown", "teal")])[:2]]
    image = Image.new("RGB", (64, 64), render.BACKGROUNDS[rng.integers(len(render.BACKGROUNDS))])
    relation = str(rng.choice(["left of", "right of", "above", "below"]))
    first, second = (18.0, 32.0), (46.0, 32.0)  # the second thing is right of the first
    if relation in ("left of", "above"):
        first, second = second, first
    places = [p if relation in ("left of", "right of") else (p[1], p[0]) for p in (first, second)]
    for shape, color, place in zip((one, other), colors, places, strict=True):
        x, y = (v + rng.uniform(-3, 3) for v in place)
        left, top = math.floor(x), math.floor(y)
        mask, _ = render._shape_mask(str(shape), 85, int(4 * (x - left)), int(4 * (y - top)))
        image.paste(COLORS[color], (left - mask.width // 2, top - mask.height // 2), mask)
    include = [
        {"class": str(one), "count": 1, "color": colors[0]},
        {"class": str(other), "count": 1, "color": colors[1], "position": [relation, 0]},
    ]
    exclude = [{"class": str(name), "count": 2} for name in (one, other)]
    right = bool(rng.integers(2))
    if not right:
        match rng.integers(4):
            case 0:
                include[0]["color"], include[1]["color"] = colors[1], colors[0]
            case 1:
                opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
                include[1]["position"] = [opposite[relation], 0]
            case 2:
                include[0]["count"] = 2
            case _:
                exclude[1]["count"] = 1
    return np.asarray(image), {"include": json.dumps(include), "exclude": json.dumps(exclude)}, right


def test_scenes_of_two_classes_are_judged_right() -> None:
    rng = np.random.default_rng(0)
    scenes = [scene(rng) for _ in range(200)]
    evaluator = ComposeEvaluator(Yolo(weights="tiny", image_size=128))
    found = evaluator.measure([image for image, *_ in scenes], [target for _, target, _ in scenes])
    assert set(found[0]) == set(evaluator.columns)
    rewards = score(found, "geneval(clauses, clauses_right)", evaluator.columns)
    graded = score(found, "clauses_held(clauses, clauses_right)", evaluator.columns)
    agree = [reward == float(right) for reward, (*_, right) in zip(rewards, scenes, strict=True)]
    share = [
        abs(g - (1.0 if right else 0.75)) < 1e-9 or (not right and abs(g - 0.5) < 1e-9)
        for g, (*_, right) in zip(graded, scenes, strict=True)
        if g is not None
    ]
    assert np.mean(agree) >= 0.95 and np.mean(share) >= 0.95
    wrong = next(row for row, (*_, right) in zip(found, scenes, strict=True) if not right and row["clauses_wrong"])
    assert "expected" in wrong["clauses_wrong"]


@pytest.mark.parametrize("name", ["yolo", "boxes", "compose"])
def test_whatever_detects_has_the_actors_of_the_detector(name: str) -> None:
    made = Recipe(evaluators=[name], reward="1", yolo=Yolo(actors=2, num_gpus=0.5))
    assert actors_of(made) == {name: (2, 0.5)}

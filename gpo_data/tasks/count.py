"""Task `count`: draw so many things of a class. The target is the class and the number; a detector counts.

    signs    {number} {color} {shape}s                 the tiny world (tiny/words.py), 144 combinations
    scenes   a photo of {number} {things} {place}      COCO classes x one to eight x place, thousands

A sentence of the user's own says the number and the things (phrases.py): `three small brown dogs on a beach` is 3 dog,
by the name that detectors have for it. One that counts several things, or none, is an error: several are for task
`compose`.
The split hashes `{n} {color} {shape}` for signs and `{n} {class}` otherwise, a synonym as its class, so a place or a
wording leaks nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.prompt import Prompt, prompt_id
from gpo_data.recipe import Task
from gpo_data.split import held_out
from gpo_data.tasks import extras, sources, unseen
from gpo_data.tasks.base import TaskKind
from gpo_data.tasks.classes import plural, unsynonymous
from gpo_data.tasks.listed import listed
from gpo_data.tasks.phrases import phrases
from gpo_data.tiny import words

COLUMNS: dict[str, pa.DataType] = {"target_class": pa.string(), "target_count": pa.int32(), "color": pa.string()}

NUMBERS = listed("one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve")
MAX_COUNT = 8  # of the grammar `scenes`: above it neither models nor detectors are at home
# Things that stand apart in a photograph and that COCO detectors know.
CLASSES = listed(
    """
    person, dog, cat, horse, cow, sheep, elephant, zebra, giraffe, bear, bird, car, bus, truck, bicycle, motorcycle,
    boat, airplane, bench, umbrella, suitcase, backpack, kite, surfboard, bottle, cup, bowl, apple, orange, banana,
    donut, chair, clock, vase, teddy bear, traffic light, book, laptop
    """
)
PLACES = listed(
    """, on a beach, in a park, on a street, in a snowy field, in a studio, in front of a brick wall, at night,
    on a sunny day, seen from above
    """
)
MOST = 10_000  # to count in a picture; beyond lie slips of the keyboard


def prompts(spec: Task, seed: int) -> list[Prompt]:
    """The recipe's prompts, distinct and in a fixed order. Raises UsageError."""
    if spec.prompts is not None:
        named = [spec.target_column, spec.class_column]
        found = sources.own_prompts(spec, from_sentence, lambda row: _from_row(row, spec), key, named)
    else:
        found = _signs(spec, seed) if spec.grammar == "signs" else _scenes(spec, seed)
    return sources.take(found, spec)


def key(target: sources.Target) -> str:
    """What the split hashes: `{n} {color} {shape}` in the tiny world, `{n} {class}` without a colour."""
    name = unsynonymous(str(target["target_class"]))
    if color := target.get("color"):
        return words.count_key(int(target["target_count"]), str(color), name)
    return f"{target['target_count']} {name}"


def sign(target: sources.Target) -> str:
    """The sentence of the grammar `signs`; ValueError for what is not in it."""
    return words.count_caption(int(target["target_count"]), str(target["color"]), str(target["target_class"]))


def _signs(spec: Task, seed: int) -> list[Prompt]:
    targets: list[sources.Target] = [
        {"target_class": shape, "target_count": n, "color": color}
        for n in range(1, len(words.NUMBERS) + 1)
        for color in words.COLORS
        for shape in words.SHAPES
    ]
    return _shuffled([(sign(target), target) for target in targets], spec, seed)


def _scenes(spec: Task, seed: int) -> list[Prompt]:
    found: list[tuple[str, sources.Target]] = []
    for name in (*CLASSES, *unseen.CLASSES):
        for n in range(1, MAX_COUNT + 1):
            target: sources.Target = {"target_class": name, "target_count": n}
            if name in unseen.CLASSES and not held_out(key(target)):
                continue
            things = name if n == 1 else plural(name)
            for place in PLACES:
                sentence = f"a photo of {NUMBERS[n - 1]} {things} {place}".rstrip()
                found.append((sentence, target))
    return _shuffled(found, spec, seed)


def _shuffled(found: list[tuple[str, sources.Target]], spec: Task, seed: int) -> list[Prompt]:
    """Those on the wanted side of the split, in a seeded order."""
    kept = [(sentence, target) for sentence, target in found if sources.on_side(key(target), spec)]
    order = np.random.default_rng(seed).permutation(len(kept))
    return [Prompt(prompt_id(kept[i][0]), *kept[i]) for i in order]


def from_sentence(sentence: str) -> sources.Target:
    found = phrases(sentence)
    # An article counts where no number does: in `two cats on a couch` the couch is the place.
    counted = [phrase for phrase in found if phrase.numbered] or found
    if not counted:
        raise ValueError(f"no target: expected a number and things, as in three dogs, found {sentence!r}")
    if len(counted) > 1:
        raise ValueError(
            f"several things are counted, {', '.join(map(str, counted))}: expected one, or task.kind compose, which "
            f"judges them all, found {sentence!r}"
        )
    return {"target_class": counted[0].name, "target_count": in_range(counted[0].count, "the number")}


def in_range(number: int, name: str) -> int:
    """The number. Raises ValueError."""
    if not 1 <= number <= MOST:
        raise ValueError(f"{name}: expected a whole number, 1 to {MOST:,}, found {number:,}")
    return number


def _from_row(row: dict[str, Any], spec: Task) -> sources.Target:
    number = sources.column(row, spec.target_column, "task.target_column")
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{spec.target_column}: expected a whole number, 1 to {MOST:,}, found {number!r:.200}")
    number = in_range(number, spec.target_column)
    name = sources.column(row, spec.class_column, "task.class_column")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{spec.class_column}: expected the name of a class, found {name!r}")
    color = row.get("color")
    target: sources.Target = {"target_class": extras.encodable(name.strip(), spec.class_column), "target_count": number}
    return target | ({"color": color} if isinstance(color, str) and color else {})


TASK = TaskKind(
    columns=COLUMNS,
    prompts=prompts,
    exact="n_detected = target_count",
    lenient="abs(n_detected - target_count) <= 1",
    key=lambda prompt: key(prompt.target),
    level="target_count",
    level_name="target count",
    measured=("n_detected",),
    describe=lambda row: f"saw {row.get('n_detected')} of {row['target_count']}",
    classes=lambda prompt: {str(prompt.target["target_class"])},
    file_columns={"target_count": "target", "target_class": "class"},
)

"""Task `count`: draw so many things of a class. The target is the class and the number; a detector counts.

    signs    {number} {color} {shape}s                 the tiny world (tiny/words.py), 144 combinations
    scenes   a photo of {number} {things} {place}      COCO classes x one to eight x place, thousands

A sentence of the user's own has the number as a word or in digits, and after it the things: the last noun of the
phrase (`three small brown dogs on a beach` -> dog), singular, as detectors name their classes.
The split hashes `{n} {color} {shape}` for signs and `{n} {class}` otherwise, so a place or a wording leaks nothing.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.prompt import Prompt, prompt_id
from gpo_data.recipe import Task
from gpo_data.split import held_out
from gpo_data.tasks import sources, unseen
from gpo_data.tasks.base import TaskKind
from gpo_data.tasks.sources import listed
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
IRREGULAR = """
    person/people, sheep/sheep, bus/buses, bench/benches, mouse/mice, knife/knives, child/children, man/men,
    woman/women, goose/geese, fish/fish, deer/deer, leaf/leaves, wolf/wolves, shelf/shelves, skis/skis,
    scissors/scissors"""
# Their singular is not what the ending says.
REGULAR = """
    person/persons, tie/ties, movie/movies, cookie/cookies, horse/horses, vase/vases, house/houses, rose/roses,
    axe/axes"""
PLURALS = {single: plural for single, _, plural in (pair.partition("/") for pair in listed(IRREGULAR))}
SINGULARS = {
    plural: single for single, _, plural in (pair.partition("/") for pair in listed(f"{IRREGULAR}, {REGULAR}"))
}
TWO_WORDS = listed(
    """
    traffic light, fire hydrant, stop sign, parking meter, sports ball, baseball bat, baseball glove, tennis racket,
    wine glass, hot dog, potted plant, dining table, cell phone, teddy bear, hair drier
    """
)
# Words that end the phrase of the things counted.
AFTER = set(
    """on in at with of and or near under over above below beside behind between by from to inside around against
    along across next that which who while is are was were standing sitting lying running walking flying playing
    swimming floating parked hanging seen made arranged placed for a an the""".split()  # noqa: SIM905 - easier to read
)


def prompts(spec: Task, seed: int) -> list[Prompt]:
    """The recipe's prompts, distinct and in a fixed order. Raises UsageError."""
    if spec.prompts is not None:
        found = sources.own_prompts(spec, _from_sentence, lambda row: _from_row(row, spec), key)
    else:
        found = _signs(spec, seed) if spec.grammar == "signs" else _scenes(spec, seed)
    return sources.take(found, spec)


def key(target: sources.Target) -> str:
    """What the split hashes: `{n} {color} {shape}` in the tiny world, `{n} {class}` without a colour."""
    if color := target.get("color"):
        return words.count_key(int(target["target_count"]), str(color), str(target["target_class"]))
    return f"{target['target_count']} {target['target_class']}"


def sign(target: sources.Target) -> str:
    """The sentence of the grammar `signs`; ValueError for what is not in it."""
    return words.count_caption(int(target["target_count"]), str(target["color"]), str(target["target_class"]))


def plural(name: str) -> str:
    """`dog` -> `dogs`, `person` -> `people`, `teddy bear` -> `teddy bears`."""
    if name in PLURALS:
        return PLURALS[name]
    if re.search(r"(s|x|ch|sh)$", name):
        return name + "es"
    return name[:-1] + "ies" if re.search(r"[^aeiou]y$", name) else name + "s"


def singular(name: str) -> str:
    """The inverse of `plural`; a word that is singular already stays as it is."""
    if name in SINGULARS or name in PLURALS:
        return SINGULARS.get(name, name)
    if name.endswith("ies"):
        return name[:-3] + "y"
    if re.search(r"(ss|x|ch|sh)es$", name):
        return name[:-2]
    return name[:-1] if name.endswith("s") and not name.endswith(("ss", "us")) else name


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


def _from_sentence(sentence: str) -> sources.Target:
    tokens = re.findall(r"\d+|[^\W\d_]+(?:[-'’][^\W\d_]+)*|[.,;:!?]", sentence.lower())
    for place, token in enumerate(tokens):
        n = NUMBERS.index(token) + 1 if token in NUMBERS else int(token) if token.isdecimal() else 0
        if n < 1:
            continue
        phrase: list[str] = []
        for word in tokens[place + 1 :]:
            if word in AFTER or not word[0].isalpha():
                break
            phrase.append(word)
        if phrase:
            last_two = " ".join([*phrase[-2:-1], singular(phrase[-1])])
            return {"target_class": last_two if last_two in TWO_WORDS else singular(phrase[-1]), "target_count": n}
    raise ValueError(f"no target: expected a number and things, as in three dogs, found {sentence!r}")


def _from_row(row: dict[str, Any], spec: Task) -> sources.Target:
    number = sources.column(row, spec.target_column, "task.target_column")
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{spec.target_column}: expected a whole number, 1 or more, found {number!r}")
    name = sources.column(row, spec.class_column, "task.class_column")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{spec.class_column}: expected the name of a class, found {name!r}")
    color = row.get("color")
    target: sources.Target = {"target_class": name.strip(), "target_count": number}
    return target | ({"color": color} if isinstance(color, str) else {})


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
    file_columns={"target_count": "target", "target_class": "class"},
)

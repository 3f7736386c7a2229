"""Names of things: the classes that detectors are trained on, what else people call them, one of them and several.

    COCO      the 80 classes as ultralytics' models name them
    SHAPES    the tiny world's
    SYNONYMS  another word: the class, as in television: tv; also the names of GenEval's metadata (`computer mouse`)

`canonical` is what two names are compared by, so that a prompt file's `television` is counted by a detector that says
`tv`, and the other way round. A detector of one's own has its own names, compared as they are.
Plurals are those of `inflect`; that library is imported at the first sentence.
"""

from __future__ import annotations

import functools
from typing import Any

from gpo_data.tasks.listed import listed
from gpo_data.tiny.words import SHAPES

COCO = listed(
    """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
    teddy bear, hair drier, toothbrush
    """
)
SYNONYMS = {
    other: name
    for name, others in {
        "person": "man, woman, boy, girl, child, kid, human, adult, baby, lady, guy, pedestrian",
        "bicycle": "bike",
        "motorcycle": "motorbike",
        "airplane": "aeroplane, plane, aircraft, jet",
        "car": "automobile, taxi",
        "boat": "ship, sailboat",
        "traffic light": "traffic signal, stoplight",
        "fire hydrant": "hydrant",
        "cat": "kitten, kitty",
        "dog": "puppy",
        "cow": "bull, calf",
        "horse": "pony, foal",
        "sheep": "lamb",
        "bear": "polar bear, brown bear, grizzly bear",
        "backpack": "rucksack",
        "handbag": "purse",
        "tie": "necktie",
        "sports ball": "ball, football, soccer ball, basketball, tennis ball, baseball",
        "surfboard": "surf board",
        "skateboard": "skate board",
        "tennis racket": "racket, tennis racquet, racquet",
        "wine glass": "wineglass",
        "donut": "doughnut",
        "couch": "sofa",
        "potted plant": "pot plant, houseplant, plant",
        "dining table": "table, diningtable",
        "tv": "television, tv monitor, television set, tvmonitor",
        "laptop": "laptop computer, notebook computer",
        "mouse": "computer mouse",
        "remote": "tv remote, remote control",
        "keyboard": "computer keyboard",
        "cell phone": "mobile phone, cellphone, smartphone, phone, telephone, mobile",
        "microwave": "microwave oven",
        "refrigerator": "fridge",
        "teddy bear": "teddy",
        "hair drier": "hair dryer, hairdryer, hairdrier, blow dryer",
        "clock": "alarm clock, wall clock",
        "cup": "mug, teacup",
    }.items()
    for other in listed(others)
}
INVARIANT = ("sheep", "skis", "scissors", "aircraft", "broccoli", "fish", "deer", "shrimp")
PAIRED = ("scissors", "skis", "glasses", "sunglasses", "trousers", "pants", "jeans", "shorts", "pliers", "binoculars")


def canonical(name: str) -> str:
    """The class that a name means, in lower case; a name that is not known stays as it is."""
    folded = _folded(name)
    return SYNONYMS.get(folded, folded)


def unsynonymous(name: str) -> str:
    """The class that a synonym means; any other name as it is written, so that the split's keys of it stay."""
    return SYNONYMS.get(_folded(name), name)


def _folded(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def plural(name: str) -> str:
    """`dog` -> `dogs`, `person` -> `people`, `teddy bear` -> `teddy bears`."""
    if name in INVARIANT:
        return name
    return str(_inflect().plural_noun(name) or name)


def singular(name: str) -> str:
    """The inverse of `plural`; a word that is singular already stays as it is."""
    if (known := known_plurals().get(name)) or name in known_names():
        return known or name
    *before, last = name.split()
    if last.endswith(("ss", "us", "is")) or last in UNCOUNTED:
        return name
    return " ".join([*before, str(_inflect().singular_noun(last) or last)])


def is_plural(word: str) -> bool:
    """Of a word that is in no list."""
    return singular(word) != word


# They look like plurals.
UNCOUNTED = listed("gas, lens, canvas, atlas, christmas, always, paris, mars, news, chess, texas, was, has, does, this")


@functools.cache
def known_names() -> frozenset[str]:
    """Words for one thing that a detector knows."""
    return frozenset((*COCO, *SYNONYMS, *SHAPES))


@functools.cache
def known_plurals() -> dict[str, str]:
    """{words for several: for one}"""
    regular = {"persons": "person"}
    return regular | {plural(name): name for name in sorted(known_names())}


@functools.cache
def _inflect() -> Any:
    import inflect

    return inflect.engine()


@functools.cache
def number_words() -> dict[str, int]:
    """`twenty one`, `one hundred five`, ... up to 999, and whole thousands; without hyphens and `and`."""
    named = {0: "zero"} | {n: str(_inflect().number_to_words(n, andword="")) for n in [*range(1, 1000)]}
    named |= {1000 * n: f"{named[n]} thousand" for n in range(1, 1000)}
    return {" ".join(words.replace("-", " ").replace(",", " ").split()): n for n, words in named.items()}

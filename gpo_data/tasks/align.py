"""Task `align`: draw what the prompt says. There is no word to read and nothing to count unless the prompt has it.

    signs    {number} {color} {shape}s                                      the tiny world: the prompts of task `count`
    scenes   binding   a photo of a {color} {thing} and a {color} {thing}   which colour belongs to which thing
             position  a photo of a {thing} {left of, ...} a {thing}
             style     {a watercolour, ...} of a {animal} {place}

A third of `scenes` is of each aspect, whatever the number of prompts. A prompt of the user's own is any sentence; the
columns of a .jsonl file or data set that count.py knows (class, number, color) are kept where they are there.
The reward comes from an evaluator that judges a picture by its prompt: `clip_score` and its kin, `boxes` in the tiny
world, or a function of your own.
The split hashes the sentence, in lower case with single spaces, and for signs what count.py hashes: the embedded model
was never trained on those that are held out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.prompt import Prompt, prompt_id
from gpo_data.recipe import Task
from gpo_data.tasks import count, sources
from gpo_data.tasks.base import TaskKind
from gpo_data.tasks.listed import listed

COLUMNS: dict[str, pa.DataType] = count.COLUMNS | {"aspect": pa.string()}

COLORS = listed("red, green, blue, yellow, black, white, purple, orange, pink, brown")
# Things that come in any colour, and stand beside any other.
THINGS = listed(
    """
    car, bench, umbrella, suitcase, backpack, kite, bottle, cup, bowl, chair, vase, book, bicycle, boat, clock, hat,
    balloon, lamp, ball, teapot
    """
)
POSITIONS = ("to the left of", "to the right of", "above", "below", "in front of", "behind")
STYLES = listed(
    """
    an oil painting, a watercolour, a pencil sketch, a charcoal drawing, a linocut print, a pixel art picture,
    a black and white photo, a 3D render, a stained glass window, a comic book panel, an embroidery,
    a low-poly render
    """
)
ANIMALS = listed("fox, owl, dog, cat, horse, elephant, giraffe, bear, rabbit, turtle, whale, crane")
PLACES = listed(
    """
    on a beach, in a park, in a snowy field, in a forest, on a mountain, in a garden, by a river, at night,
    in the rain, under a full moon
    """
)


def prompts(spec: Task, seed: int) -> list[Prompt]:
    """The recipe's prompts, distinct and in a fixed order. Raises UsageError."""
    if spec.prompts is not None:
        read = [spec.target_column, spec.class_column]
        found = sources.own_prompts(spec, lambda sentence: {}, lambda row: _from_row(row, spec), taken=read)
        return sources.take(found, spec)
    return count.prompts(spec, seed) if spec.grammar == "signs" else sources.take(_scenes(spec, seed), spec)


def key(prompt: Prompt) -> str:
    """What the split hashes: the sentence, and of a sentence of `signs` what count.py hashes."""
    if count.COLUMNS.keys() <= prompt.target.keys():
        with suppress(ValueError):
            if prompt.text == count.sign(prompt.target):
                return count.key(prompt.target)
    return sources.folded(prompt.text)


def _scenes(spec: Task, seed: int) -> list[Prompt]:
    """Every combination on the wanted side: the first of each aspect, the second of each, ..., in a seeded order."""
    rng = np.random.default_rng(seed)
    ranked: list[tuple[int, Prompt]] = []
    for aspect, sentences in _ASPECTS.items():
        kept = [sentence for sentence in sentences() if sources.on_side(sources.folded(sentence), spec)]
        for rank, i in enumerate(rng.permutation(len(kept))):
            ranked.append((rank, Prompt(prompt_id(kept[i]), kept[i], {"aspect": aspect})))
    return [prompt for _, prompt in sorted(ranked, key=lambda pair: pair[0])]  # sorted() keeps the order of equals


def _binding() -> list[str]:
    """Two things in two colours, a pair of things once."""
    return [
        f"a photo of {_a(first)} {one} and {_a(second)} {other}"
        for i, one in enumerate(THINGS)
        for other in THINGS[i + 1 :]
        for first in COLORS
        for second in COLORS
        if first != second
    ]


def _position() -> list[str]:
    return [
        f"a photo of {_a(one)} {where} {_a(other)}"
        for one in THINGS
        for other in THINGS
        for where in POSITIONS
        if one != other
    ]


def _style() -> list[str]:
    return [f"{style} of {_a(animal)} {place}" for style in STYLES for animal in ANIMALS for place in PLACES]


_ASPECTS: dict[str, Callable[[], list[str]]] = {"binding": _binding, "position": _position, "style": _style}


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _from_row(row: dict[str, Any], spec: Task) -> sources.Target:
    """What the row happens to say of the picture; of another type than count.py's columns it says nothing."""
    target: sources.Target = {}
    for name, column, kind in (
        ("target_class", spec.class_column, str),
        ("target_count", spec.target_column, int),
        ("color", "color", str),
        ("aspect", "aspect", str),
    ):
        if type(value := row.get(column)) is kind:  # and not isinstance(): a bool is no number
            target[name] = value
    return target


# A prompt has no target that every evaluator knows: right is the full reward.
TASK = TaskKind(
    columns=COLUMNS,
    prompts=prompts,
    exact="reward > 0.999",
    lenient="reward >= 0.5",
    level="len(string_split(prompt, ' '))",
    level_name="words in the prompt",
    key=key,
    file_columns=count.TASK.file_columns,
)

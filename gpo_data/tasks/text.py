"""Task `text`: draw a word. The target is the word; the reward compares it with what an OCR read.

    signs    a {color} sign that says "{WORD}"                          the tiny world (tiny/words.py)
    scenes   a photo of {scene} with {object} that reads "{words}"      scene x object x words, tens of thousands

A prompt of the user's own has its target in quotes (quotes.py), or in a column. Several texts of one prompt are one
target with a line for each, in the order of the sentence; a picture is right with all of them and nothing else, in
whatever order they are read.
The split hashes the words in capitals, so that `Open` and `OPEN` are on one side in every scene, colour and sentence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.errors import UsageError
from gpo_data.prompt import Prompt, prompt_id
from gpo_data.recipe import Task
from gpo_data.tasks import extras, sources, unseen
from gpo_data.tasks.base import TaskKind
from gpo_data.tasks.listed import listed
from gpo_data.tasks.quotes import quoted
from gpo_data.tiny import words

COLUMNS: dict[str, pa.DataType] = {"target": pa.string(), "color": pa.string()}

SCENES = listed(
    """
    a shop window, a rainy street at night, a busy train station, a small bakery, a quiet library,
    a beach at sunset, a wooden cabin in the snow, a farmers' market, a subway platform, a cosy coffee shop,
    a desert highway, a brick wall in an alley, a hospital corridor, a school classroom, a harbour at dawn,
    a garden full of flowers, an old bookshop, a mountain trail, a modern office, an airport hall,
    a car park at night, a kitchen counter, a city square, a village pub
    """
)
OBJECTS = listed(
    """
    a neon sign, a wooden sign, a chalkboard, a paper poster, a metal plate, a hanging banner, a street sign,
    a painted wall, a cardboard box, a framed print, a billboard, a coffee mug, a lit display,
    a white T-shirt on a hanger
    """
)
WORDS = listed(
    """
    Open, Closed, Welcome, Sale, Exit, Fresh Bread, Open Late, No Parking, Coffee, Hot Soup, Bakery, Fish Market,
    Good Morning, Stay Calm, Book Club, Live Music, Jazz Night, Slow Down, Thank You, Happy Hour, Free Water,
    Lost Dog, Pizza, Ice Cream, Flowers, Tickets, Platform 9, Gate 12, Room 204, Keep Left, Mind the Gap, Wet Paint,
    Quiet Please, Do Not Enter, Push, Pull, Night Bus, City Hall, Museum, Garden, Library, Pharmacy, Barber, Tailor,
    Bicycles, Car Wash, Hotel, Vacancy, Taxi, Boats, Summer, Winter Sale, Spring, Autumn Leaves, Moonlight,
    Sunshine, Dream Big, Be Kind, Hello, Goodbye, See You Soon, Yes We Can, Made by Hand, Home Sweet Home,
    Since 1987, Half Price, Two for One, New York, Lisbon, Kyoto, Oslo, Nairobi, Buenos Aires, Green Tea, Lemonade,
    Cold Beer, Red Wine, Fresh Eggs, Honey, Apples, Strawberries, Olive Oil, Cheese, Noodles, Tacos, Vintage,
    Records, Art Class, Yoga, Chess Club, Cinema, Theatre, Circus, Opera, Balloon Ride, Stargazing, Robots,
    Science Fair, Great Ideas, Think Twice, Start Here, The End, Chapter One, Lucky Seven, First Prize, Winner,
    Champion, Finish, Danger, High Voltage, Caution, Private, Staff Only, Ring the Bell, Beware of Cats,
    Please Wait, Next Stop, Way Out, Upstairs, Lighthouse, Harbour, Ocean View, Mountain Hut, River Walk, Old Town,
    Sky Bar, Black Cat, White Rabbit, Blue Whale, Golden Gate, Silver Spoon, Purple Rain, Red Fox, Secret Door,
    Magic, Wonder, Infinity, Adventure, Treasure
    """
)


def prompts(spec: Task, seed: int) -> list[Prompt]:
    """The recipe's prompts, distinct and in a fixed order. Raises UsageError."""
    if spec.prompts is not None:
        named = [spec.target_column]
        found = sources.own_prompts(spec, from_sentence, lambda row: _from_row(row, spec), key, named, text=named)
        return sources.take(found, spec)
    return _signs(spec, seed) if spec.grammar == "signs" else sources.take(_scenes(spec, seed), spec)


def key(target: sources.Target) -> str:
    """What the split hashes: the word, in capitals, with single spaces."""
    return " ".join(str(target["target"]).upper().split())


def _signs(spec: Task, seed: int) -> list[Prompt]:
    """Each word once, in a random colour."""
    if spec.num_prompts is None:
        raise UsageError("task.num_prompts: null takes all, and the grammar `signs` has millions; give a number")
    rng = np.random.default_rng(seed)
    held = None if spec.split == "all" else spec.split != "train"
    found: dict[str, Prompt] = {}
    while len(found) < spec.num_prompts:
        word = words.sample_word(rng, held=held)
        color = list(words.COLORS)[rng.integers(len(words.COLORS))]
        if word not in found and sources.on_side(word, spec):  # what is not trained on has two parts
            sentence = words.text_caption(color, word)
            found[word] = Prompt(prompt_id(sentence), sentence, {"target": word, "color": color})
    return list(found.values())


def _scenes(spec: Task, seed: int) -> list[Prompt]:
    """Every combination on the wanted side, in a seeded order."""
    allowed = [word for word in (*WORDS, *unseen.WORDS) if sources.on_side(key({"target": word}), spec)]
    combinations = [(s, o, w) for s in SCENES for o in OBJECTS for w in allowed]
    found = []
    for index in np.random.default_rng(seed).permutation(len(combinations)):
        scene, thing, word = combinations[index]
        sentence = f'a photo of {scene} with {thing} that reads "{word}"'
        found.append(Prompt(prompt_id(sentence), sentence, {"target": word}))
    return found


def from_sentence(sentence: str) -> sources.Target:
    found = quoted(sentence)
    if not found:
        raise ValueError(
            f'no target: expected the words to draw in double quotes, as in a sign that reads "Open", '
            f"found {sentence!r}"
        )
    return {"target": "\n".join(found)}


def _from_row(row: dict[str, Any], spec: Task) -> sources.Target:
    found = sources.column(row, spec.target_column, "task.target_column")
    texts = found if isinstance(found, list) else [found]
    for word in texts:
        if not isinstance(word, str) or not word.strip():
            raise ValueError(
                f"{spec.target_column}: expected the words to draw, or a list of them, found {found!r:.200}"
            )
    words = [" ".join(word.split("\n")).strip() if len(texts) > 1 else word.strip() for word in texts]
    target: sources.Target = {"target": extras.encodable("\n".join(words), spec.target_column)}
    if isinstance(color := row.get("color"), str) and color:
        target["color"] = color
    return target


TASK = TaskKind(
    columns=COLUMNS,
    prompts=prompts,
    exact="text_exact(target, ocr_text)",
    lenient="text_contains(target, ocr_text)",
    scores={"ocr_accuracy": "text_edit_lenient(target, ocr_text)"},
    key=lambda prompt: key(prompt.target),
    level="length(target)",
    level_name="target length",
    measured=("ocr_text",),
    describe=lambda row: f"“{row['ocr_text']}”" if row.get("ocr_text") else "nothing read",
)

"""The grammar of the tiny world: colours, shapes, numbers, words, captions.

    text   a {color} sign that says "{WORD}"     WORD: 2 to 5 letters A-Z
    count  {number} {color} {shape}s             one to six; `one red circle`

Words are half letter strings (uniform letters) and half dictionary-like: a short
built-in list of English words and pronounceable strings made of syllables.
The split of gpo_data/split.py is applied here: a sampler is told which side to draw from.
"""

import re

import numpy as np

from gpo_data.split import held_out

# Every colour is dark enough for white letters: one polarity of lettering is one
# thing less for a small model to learn.
COLORS = {
    "red": (205, 30, 35),
    "green": (25, 135, 50),
    "blue": (35, 70, 205),
    "purple": (125, 40, 160),
    "orange": (225, 105, 10),
    "black": (25, 25, 25),
    "brown": (120, 72, 35),
    "teal": (0, 128, 130),
}
SHAPES = ("circle", "square", "triangle")
NUMBERS = ("one", "two", "three", "four", "five", "six")
MIN_LETTERS, MAX_LETTERS = 2, 5

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ENGLISH = tuple(
    """AN AT BE BY DO GO HE IF IN IS IT ME MY NO OF ON OR SO TO UP US WE
    ACT AIR ARM ART BAG BED BIG BOX BUS CAR CAT CUP DAY DOG EAR EGG END EYE FAN FAR FLY
    FOX FUN GAS HAT HEN HOT ICE INK JAM JET JOY KEY LEG LIP MAP MIX NET NEW NUT OAK OIL OLD
    OWL PEN PIG PIN RED RUN SEA SKY SUN TAX TEA TOP TOY VAN WAR WAX WEB WIN YES ZOO
    BALL BANK BEAR BIRD BLUE BOAT BOOK CAFE CAKE CITY COAL COLD DEEP DESK DOOR DUCK EAST
    EXIT FARM FIRE FISH FLAG FOOD FROG GAME GATE GOLD HAND HERO HILL HOME IRON JUMP KING KITE
    LAKE LAMP LEAF LION LOVE MILK MOON NEST NOON NORD OPEN OVEN PARK PIPE POOL QUIZ RAIN RICE
    ROAD ROCK ROSE SALE SALT SAND SHIP SHOP SNOW SOUP STAR STOP TAXI TENT TIME TREE TURN VIEW
    WALK WAVE WEST WIND WOLF WOOD YARD ZERO ZONE
    ALARM APPLE BEACH BREAD BRICK CABLE CHAIR CLOUD CROWN DANCE DREAM EAGLE EARTH FIELD FLAME
    FRUIT GHOST GLASS GRAPE GREEN HEART HONEY HORSE HOTEL HOUSE JUICE KNIFE LEMON LIGHT LUNCH
    MAGIC METAL MONEY MOUSE MUSIC NIGHT OCEAN ORBIT PAPER PIANO PIZZA PLANT QUEEN RADIO RIVER
    ROBOT SALAD SHEEP SMILE SOLAR SPACE STONE STORM SUGAR TABLE TIGER TOAST TOWER TRAIN TRUCK
    VOICE WATER WHALE WHEEL WORLD ZEBRA""".split()  # noqa: SIM905 - a list literal of 200 words would be less readable
)
_BY_LENGTH = {n: [w for w in ENGLISH if len(w) == n] for n in range(MIN_LETTERS, MAX_LETTERS + 1)}
_VOWELS, _CONSONANTS = "AEIOU", "BCDFGHJKLMNPRSTVWZ"


def text_caption(color: str, word: str) -> str:
    """`a red sign that says "KITE"`; refuses words and colours outside the grammar."""
    if not re.fullmatch(rf"[A-Z]{{{MIN_LETTERS},{MAX_LETTERS}}}", word):
        raise ValueError(f"word {word!r}: expected {MIN_LETTERS} to {MAX_LETTERS} letters A-Z")
    if color not in COLORS:
        raise ValueError(f"color {color!r}: expected one of {', '.join(COLORS)}")
    return f'a {color} sign that says "{word}"'


def count_caption(n: int, color: str, shape: str) -> str:
    """`four blue circles`, `one red circle`; refuses what lies outside the grammar."""
    if not 1 <= n <= len(NUMBERS):
        raise ValueError(f"count {n}: expected 1 to {len(NUMBERS)}")
    if color not in COLORS:
        raise ValueError(f"color {color!r}: expected one of {', '.join(COLORS)}")
    if shape not in SHAPES:
        raise ValueError(f"shape {shape!r}: expected one of {', '.join(SHAPES)}")
    return f"{NUMBERS[n - 1]} {color} {shape}{'s' if n > 1 else ''}"


def count_key(n: int, color: str, shape: str) -> str:
    """The content key of a counting prompt, as gpo_data.split wants it."""
    return f"{n} {color} {shape}"


def _pronounceable(rng: np.random.Generator, length: int) -> str:
    vowel = bool(rng.integers(2))
    letters = []
    for _ in range(length):
        pool = _VOWELS if vowel else _CONSONANTS
        letters.append(pool[rng.integers(len(pool))])
        vowel = not vowel
    return "".join(letters)


def sample_word(rng: np.random.Generator, length: int | None = None, *, held: bool | None = False) -> str:
    """A word of `length` letters (2 to 5 at random if None).

    held: False draws training words, True held-out words, None either.
    """
    length = length or int(rng.integers(MIN_LETTERS, MAX_LETTERS + 1))
    while True:
        kind = rng.random()
        if kind < 0.5:
            word = "".join(LETTERS[i] for i in rng.integers(0, 26, length))
        elif kind < 0.85:
            word = _pronounceable(rng, length)
        else:
            word = _BY_LENGTH[length][rng.integers(len(_BY_LENGTH[length]))]
        if held is None or held_out(word) == held:
            return word


def sample_count(rng: np.random.Generator, n: int | None = None, *, held: bool | None = False) -> tuple[int, str, str]:
    """(n, color, shape) on the wanted side of the split; `held` as in `sample_word`."""
    colors = list(COLORS)
    while True:
        count = n or int(rng.integers(1, len(NUMBERS) + 1))
        color, shape = colors[rng.integers(len(colors))], SHAPES[rng.integers(len(SHAPES))]
        if held is None or held_out(count_key(count, color, shape)) == held:
            return count, color, shape

"""The renderer of the tiny world: 64x64 RGB pictures with captions and boxes.

    text   white letters on a coloured sign on a pale ground
    count  one to six shapes of one kind, size and colour, never touching

A picture is a pure function of its arguments and of the random generator's state.
Deliberately narrow (three bold fonts in two sizes, a jitter of four pixels):
a model of eight million parameters has to learn it in an hour or two on two cores.
Training widens the lettering in stages: a `World` says how far; the default is all of it.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gpo_data.tiny import words
from gpo_data.tiny.words import COLORS, SHAPES

SIZE = 64
BACKGROUNDS = ((245, 245, 240), (225, 235, 245), (245, 232, 214), (222, 240, 222))
FONTS = ("DejaVuSansMono-Bold.ttf", "DejaVuSansMono-BoldOblique.ttf", "DejaVuSerif-Bold.ttf")
FONT_SIZES = ((19, 12), (17, 11))  # of the font, and the pitch of its letters
# A look is a font, its size and its pitch. Each look and offset more costs the model training pictures.
LOOKS = tuple((font, size, pitch) for font in FONTS for size, pitch in FONT_SIZES)
# Columns shared by all word lengths, as nearly centred as whole columns allow.
FIRST_COLUMN = {2: 1, 3: 1, 4: 0, 5: 0}
MARGIN = 8  # pixels of sign above and below the word
GAP = 3.0  # pixels that always stay between two shapes
# Radii (of the circle around a shape's middle) by count: six must fit with a gap.
RADIUS = (5.5, 8.5)


@dataclass(frozen=True)
class World:
    """How much the lettering of signs varies, and what is not there at all; shapes look the same in every world.

    fonts, sizes: the first so many of FONTS and FONT_SIZES.
    placement: `columns` puts every letter in one of five fixed columns, so that up to the jitter a letter in a
        column always looks the same; `free` centres the word.
    jitter: pixels each way, across and down; across less where the letters leave less room.
    without: letters and numbers that scenes never have, such as `Q6`: no word with a Q, no six things.
    """

    fonts: int = len(FONTS)
    sizes: int = len(FONT_SIZES)
    placement: Literal["columns", "free"] = "free"
    jitter: int = 4
    without: str = ""

    def __post_init__(self) -> None:
        for key, lowest, highest in (("fonts", 1, len(FONTS)), ("sizes", 1, len(FONT_SIZES)), ("jitter", 0, 8)):
            if not lowest <= getattr(self, key) <= highest:
                raise ValueError(f"{key}: expected {lowest} to {highest}, found {getattr(self, key)!r}")
        if self.placement not in ("columns", "free"):
            raise ValueError(f"placement: expected columns or free, found {self.placement!r}")
        if not re.fullmatch(r"[A-Z]{0,8}[1-6]{0,5}", self.without):
            raise ValueError(
                f"without: expected up to eight letters A-Z, then up to five numbers 1-6, found {self.without!r}"
            )


WHOLE_WORLD = World()


@lru_cache(maxsize=len(LOOKS))
def letter_masks(look: int) -> dict[str, Image.Image]:
    """The ink of every capital, one pitch wide, from the top of an H to below the tail of a Q.

    A letter wider than its column is squeezed into it.
    """
    font, size, pitch = LOOKS[look]
    face = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font), size)
    _, top, _, bottom = face.getbbox("H")
    masks = {}
    for letter in words.LETTERS:
        left, _, right, _ = face.getbbox(letter)
        width, height = right - left, bottom - top + 4
        ink = Image.new("L", (width, height), 0)
        ImageDraw.Draw(ink).text((-left, -top), letter, font=face, fill=255)
        if width >= pitch:
            ink = ink.resize((pitch - 1, height), Image.Resampling.BOX, reducing_gap=None)
        masks[letter] = Image.new("L", (pitch, height), 0)
        masks[letter].paste(ink, ((pitch - ink.width) // 2, 0))
    return masks


def render_text(
    word: str,
    *,
    color: str,
    background: tuple[int, int, int] | None = None,
    look: int | None = None,
    world: World = WHOLE_WORLD,
    seed: int | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """A sign with `word`, uint8 [64, 64, 3]. `look` is an index in LOOKS. Give `seed` or `rng`."""
    words.text_caption(color, word)  # refuses what is outside the grammar
    rng = rng or np.random.default_rng(seed)
    pick, u, v, w = rng.random(4)
    ground = BACKGROUNDS[int(pick * len(BACKGROUNDS))] if background is None else background
    if look is None:
        font, size = divmod(int(w * world.fonts * world.sizes), world.sizes)
        look = len(FONT_SIZES) * font + size
    pitch, masks = LOOKS[look][2], letter_masks(look)
    if world.placement == "columns":
        room = (SIZE - pitch * words.MAX_LETTERS) // 2
        x = room + pitch * FIRST_COLUMN[len(word)]
    else:
        x = room = (SIZE - pitch * len(word)) // 2
    x += round((2 * u - 1) * min(world.jitter, max(1, room - 2)))
    height = masks["H"].height
    y = (SIZE - height + 4) // 2 + round((2 * v - 1) * world.jitter)
    image = Image.new("RGB", (SIZE, SIZE), ground)
    box = (x - 2, y - MARGIN, x + pitch * len(word) + 1, y + height - 4 + MARGIN)
    draw = ImageDraw.Draw(image)
    draw.rectangle(box, fill=COLORS[color])
    for column, letter in enumerate(word):
        draw.bitmap((x + pitch * column, y), masks[letter], fill=(255, 255, 255))
    return np.asarray(image)


def _place(n: int, radius: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """n centres whose circles of `radius` keep GAP pixels apart, by rejection."""
    lo, span = radius + 1.5, SIZE - 2 * radius - 3
    apart = (2 * radius + GAP) ** 2
    while True:
        centres: list[tuple[float, float]] = []
        for u, v in rng.random((30, 2)).tolist():
            x, y = lo + span * u, lo + span * v
            if all((x - a) ** 2 + (y - b) ** 2 >= apart for a, b in centres):
                centres.append((x, y))
                if len(centres) == n:
                    return centres


@lru_cache(maxsize=256)
def _shape_mask(shape: str, tenths: int, sub_x: int, sub_y: int) -> tuple[Image.Image, tuple]:
    """Anti-aliased mask of a shape inside a circle of radius tenths/10, with its box.

    sub_x, sub_y: the centre's offset in quarter pixels. Drawn four times larger, then reduced.
    """
    radius, scale = tenths / 10, 4
    side = 2 * math.ceil(radius + 1)
    big = Image.new("L", (side * scale, side * scale), 0)
    draw = ImageDraw.Draw(big)
    cx, cy, r = side * scale / 2 + sub_x, side * scale / 2 + sub_y, radius * scale
    if shape == "circle":
        r *= 0.93  # about the visual weight of the square
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
    elif shape == "square":
        s = r * 0.8
        draw.rectangle((cx - s, cy - s, cx + s, cy + s), fill=255)
    else:
        w, top, foot = r * 0.92, r, r * 0.62
        draw.polygon([(cx, cy - top), (cx + w, cy + foot), (cx - w, cy + foot)], fill=255)
    box = tuple(v / scale for v in big.getbbox())
    return big.reduce(scale), box


def render_count(
    shape: str, n: int, color: str, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[float, float, float, float]]]:
    """n shapes: (uint8 [64, 64, 3], boxes as pixels (x0, y0, x1, y1))."""
    words.count_caption(n, color, shape)  # refuses what is outside the grammar
    ground = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    tenths = 5 * round(2 * (RADIUS[0] + (RADIUS[1] - RADIUS[0]) * rng.random()))
    image = Image.new("RGB", (SIZE, SIZE), ground)
    boxes = []
    for x, y in _place(n, tenths / 10, rng):
        left, top = math.floor(x), math.floor(y)
        mask, box = _shape_mask(shape, tenths, int(4 * (x - left)), int(4 * (y - top)))
        left, top = left - mask.width // 2, top - mask.height // 2
        image.paste(COLORS[color], (left, top), mask)
        boxes.append((left + box[0], top + box[1], left + box[2], top + box[3]))
    return np.asarray(image), boxes


def word_of(world: World, rng: np.random.Generator, length: int | None = None, *, held: bool | None = False) -> str:
    """`words.sample_word`, of the letters that the world has."""
    while not set(world.without).isdisjoint(word := words.sample_word(rng, length, held=held)):
        pass
    return word


def sample_scene(
    rng: np.random.Generator,
    task: str,
    *,
    held: bool | None = False,
    level: int | None = None,
    world: World = WHOLE_WORLD,
) -> tuple[np.ndarray, str, dict]:
    """(picture uint8 [64, 64, 3], caption, target) of task `text` or `count`.

    held: False draws from the training side of the split, True from the held-out side,
    None from both. level: the word length, or the count; random if None.
    target: {"word", "color"} or {"n", "shape", "color", "boxes", "class"}; the class is the
    index in SHAPES, as YOLO wants it.
    """
    if task == "text":
        word = word_of(world, rng, level, held=held)
        color = list(COLORS)[rng.integers(len(COLORS))]
        picture = render_text(word, color=color, world=world, rng=rng)
        return picture, words.text_caption(color, word), {"word": word, "color": color}
    if task == "count":
        if level is not None and str(level) in world.without:
            raise ValueError(f"level {level}: not in a world without {world.without}")
        while str((scene := words.sample_count(rng, level, held=held))[0]) in world.without:
            pass
        n, color, shape = scene
        picture, boxes = render_count(shape, n, color, rng)
        target = {"n": n, "shape": shape, "color": color, "boxes": boxes}
        target["class"] = SHAPES.index(shape)
        return picture, words.count_caption(n, color, shape), target
    raise ValueError(f"task {task!r}: expected text or count")

"""recipes/tiny.yaml as frozen dataclasses; the file is strict.

The autoencoder and the transformer are trained in `stages`, each in a `World` of its own, wider than the one before;
the decoder and the detector are trained in the whole world. There are no defaults: a missing key, an unknown one, a
wrong type or an impossible value is a `UsageError` of one line that names it.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from gpo_data.errors import UsageError
from gpo_data.recipe.files import nearest, read
from gpo_data.tiny.render import World


@dataclass(frozen=True)
class AutoencoderStage:
    world: World
    minutes: float
    lr: float
    decay: float  # share of the minutes in which the rate falls to 0


@dataclass(frozen=True)
class Autoencoder:
    seed: int
    batch: int
    text_share: float
    letter: str  # drawn more often than others
    stages: list[AutoencoderStage]


@dataclass(frozen=True)
class Decoder:
    seed: int
    minutes: float
    batch: int
    lr: float
    decay: float
    text_share: float
    letter: str


@dataclass(frozen=True)
class Yolo:
    seed: int
    pictures: int
    epochs: int
    imgsz: int
    batch: int
    lr: float


@dataclass(frozen=True)
class TransformerStage:
    world: World
    minutes: float
    lr: float  # Muon: matrices of the blocks
    lr_adamw: float  # AdamW: all else
    decay: float


@dataclass(frozen=True)
class Transformer:
    seed: int
    batch: int
    ema: float
    dropout: float  # share of captions replaced by ""
    text_share: float
    stages: list[TransformerStage]


@dataclass(frozen=True)
class TinyRecipe:
    threads: int
    autoencoder: Autoencoder
    decoder: Decoder
    yolo: Yolo
    transformer: Transformer


COUNT = ("1 or more", lambda v: v >= 1)
RATE = ("0 or more", lambda v: v >= 0)
SHARE = ("0 to 1", lambda v: 0 <= v <= 1)
LIMITS = {  # what is allowed: in words and as a test; World has its own
    **dict.fromkeys(("threads", "batch", "pictures", "epochs", "imgsz"), COUNT),
    **dict.fromkeys(("lr", "lr_adamw", "seed"), RATE),
    **dict.fromkeys(("text_share", "dropout"), SHARE),
    "minutes": ("above 0", lambda v: v > 0),
    "decay": ("above 0, at most 1", lambda v: 0 < v <= 1),
    "ema": ("0 or more, below 1", lambda v: 0 <= v < 1),
    "letter": ("one letter A-Z", lambda v: len(v) == 1 and "A" <= v <= "Z"),
}
NAMES = {int: "a whole number", float: "a number", str: "text"}


def load(path: Path) -> TinyRecipe:
    """Read and check a recipe file. Raises UsageError."""
    try:
        return _section(TinyRecipe, read(path), "")
    except ValueError as error:
        raise UsageError(f"recipe {path}: {error}") from None


def _section(kind: type, content: Any, where: str) -> Any:
    """The dataclass `kind` out of keys and values; `where` ("transformer, stage 2: ") opens every ValueError."""
    if not isinstance(content, dict):
        raise ValueError(f"{where}expected keys and values, found {content!r}")
    hints = get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    for key in content:
        if key not in known:
            raise ValueError(f"{where}unknown key {key!r}{nearest(str(key), known)}")
    if missing := [key for key in known if key not in content]:
        raise ValueError(f"{where}missing key {missing[0]!r}; wanted: {', '.join(known)}")
    values = {key: _value(hints[key], key, content[key], where) for key in known}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def _value(hint: Any, key: str, value: Any, where: str) -> Any:
    inside = where.removesuffix(": ") + ", " if where else ""
    if dataclasses.is_dataclass(hint):
        return _section(hint, value, f"{inside}{key}: ")
    if get_origin(hint) is list:
        if not isinstance(value, list) or not value:
            raise ValueError(f"{where}{key}: expected a list of one stage or more, found {value!r}")
        return [_section(get_args(hint)[0], v, f"{inside}stage {i}: ") for i, v in enumerate(value, 1)]
    if hint in NAMES:
        right = isinstance(value, (int, float) if hint is float else hint) and not isinstance(value, bool)
        if not right:
            raise ValueError(f"{where}{key}: expected {NAMES[hint]}, found {value!r}")
    if key in LIMITS and not LIMITS[key][1](value):
        raise ValueError(f"{where}{key}: expected {LIMITS[key][0]}, found {value!r}")
    return value

"""recipes/tiny.yaml as frozen dataclasses; the file is strict.

The autoencoder and the transformer are trained in `stages`, each in a `World` of its own, wider than the one before;
the decoder and the detector are trained in the whole world, where there are sections of them. There are no other
defaults: a missing key, an unknown one, a wrong type or an impossible value is a one-line `UsageError` that names it.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import Field

from gpo_data.errors import UsageError
from gpo_data.recipe.checks import Count, Decay, NotNegative, Positive, Seed, Share, adapters, expect_valid
from gpo_data.recipe.files import nearest, read
from gpo_data.tiny.render import World

Falling = Annotated[float, Field(gt=0, le=1)]
Letter = Annotated[str, Field(pattern="^[A-Z]$")]


@dataclass(frozen=True)
class AutoencoderStage:
    world: World
    minutes: Positive
    lr: NotNegative
    decay: Falling  # share of the minutes in which the rate falls to 0


@dataclass(frozen=True)
class Autoencoder:
    seed: Seed
    batch: Count
    text_share: Share
    letter: Letter  # drawn more often than others
    stages: list[AutoencoderStage]

    def __post_init__(self) -> None:
        for number, stage in enumerate(self.stages, start=1):
            if self.letter in stage.world.without:
                raise ValueError(
                    f"letter: expected one that the world of every stage has, found {self.letter}, which that of "
                    f"stage {number} is without"
                )


@dataclass(frozen=True)
class Decoder:
    seed: Seed
    minutes: Positive
    batch: Count
    lr: NotNegative
    decay: Falling
    text_share: Share
    letter: Letter


@dataclass(frozen=True)
class Yolo:
    seed: Seed
    pictures: Count
    epochs: Count
    imgsz: Count
    batch: Count
    lr: NotNegative


@dataclass(frozen=True)
class TransformerStage:
    world: World
    minutes: Positive
    lr: NotNegative  # Muon: matrices of the blocks
    lr_adamw: NotNegative  # AdamW: all else
    decay: Falling


@dataclass(frozen=True)
class Transformer:
    seed: Seed
    layers: Count
    heads: Count  # of 32
    batch: Count
    ema: Decay
    dropout: Share  # share of captions replaced by ""
    text_share: Share
    stages: list[TransformerStage]


@dataclass(frozen=True)
class TinyRecipe:
    threads: Count
    autoencoder: Autoencoder | str  # or a model, `tiny` or a folder, whose own is taken
    transformer: Transformer
    decoder: Decoder | None = None
    yolo: Yolo | None = None


def load(path: Path) -> TinyRecipe:
    """Read and check a recipe file. Raises UsageError."""
    try:
        return _section(TinyRecipe, read(path), "")
    except (UsageError, ValueError) as error:
        raise UsageError(f"recipe {path}: {error}") from None


def _section(kind: type, content: Any, where: str) -> Any:
    """The dataclass `kind` out of keys and values; `where` ("transformer, stage 2: ") opens every error."""
    if not isinstance(content, dict):
        raise UsageError(f"{where}expected keys and values, found {content!r}")
    hints = get_type_hints(kind)
    for key in content:
        if key not in hints:
            raise UsageError(f"{where}unknown key {key!r}{nearest(str(key), [*hints])}")
    # What is None where it is left out may be; a `World` has defaults for the renderer's sake, and is written out here.
    wanted = [f.name for f in dataclasses.fields(kind) if f.default is not None]
    if missing := [key for key in wanted if key not in content]:
        raise UsageError(f"{where}missing key {missing[0]!r}; wanted: {', '.join(hints)}")
    values = {key: _value(kind, key, hint, content[key], where) for key, hint in hints.items() if key in content}
    try:
        return kind(**values)
    except ValueError as error:
        raise UsageError(f"{where}{error}") from None


def _value(kind: type, key: str, hint: Any, value: Any, where: str) -> Any:
    inside = where.removesuffix(": ") + ", " if where else ""
    if isinstance(hint, UnionType):  # a section, or what may stand in its place
        section, other = get_args(hint)
        if isinstance(value, other):
            return value
        hint = section
    if dataclasses.is_dataclass(hint):
        return _section(hint, value, f"{inside}{key}: ")
    if get_origin(hint) is list:
        if not isinstance(value, list) or not value:
            raise UsageError(f"{where}{key}: expected a list of one stage or more, found {value!r}")
        return [_section(get_args(hint)[0], v, f"{inside}stage {i}: ") for i, v in enumerate(value, 1)]
    return expect_valid(adapters(kind)[key], f"{where}{key}", value)

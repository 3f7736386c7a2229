"""A sweep file: which runs of a recipe to compare.

    recipe: text-tiny                        a name or a file
    mode: offline                            or online
    seeds: [0, 1, 2]                         of train.seed; online of seed, which draws other pictures
    jobs: 2                                  rows at once, a process each
    points: [16, 32, 48]                     steps whose policy is evaluated too: accuracy by step; none without it
    set: {train.num_inner_epochs: 1}         in every row
    grid: {train.learning_rate: [1.0e-5, 3.0e-5]}           every combination, of every row
    rows:                                    without them there is one
      - {name: gpo}
      - {name: awm, set: {train.loss: awm}, grid: {train.clip_range: [0.001, 0.01]}}
    means: {of: [1, 3], scales: [0.8, 1.0]}  of every row also the mean of each three seeds' policies, and that and each
                                             policy 0.8 times as far from the base (average.py); online with
                                             `last: [20]` of their last 20 iterations

What its rows are: plan.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from gpo_data.errors import UsageError
from gpo_data.recipe import SECTIONS, nearest
from gpo_data.recipe.checks import Count, PathText, Positive, Seed, adapters, check, expect, expect_valid
from gpo_data.recipe.files import PACKAGE

MEANT = {"recipe": "a name or a file", "of": "how many seeds"}  # of keys without a default
NAME = re.compile(r"[a-z0-9_-]{1,24}")


@dataclass(frozen=True)
class Variant:
    """A row of the file. Args: name: for people. set: keys of the recipe. grid: keys with the values to try."""

    name: str = ""
    set: dict[str, JsonValue] = field(default_factory=dict)
    grid: dict[str, list[JsonValue]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, "rows.")
        expect(all(self.grid.values()), "rows.grid", "at least one value of each key", self.grid)


@dataclass(frozen=True)
class Means:
    """Of the rows' policies.

    Args:
        of: so many seeds, one after another, are one mean; 1 is each alone.
        scales: how far from the base.
        last: of so many iterations of each; null: of their policies.
    """

    of: list[Annotated[int, Field(ge=1, le=1000)]]
    scales: list[Positive] = field(default_factory=lambda: [1.0])
    last: list[Annotated[int, Field(ge=2)] | None] = field(default_factory=lambda: [None])

    def __post_init__(self) -> None:
        check(self, "means.")
        for key, values in dataclasses.asdict(self).items():
            expect(bool(values) and len({*values}) == len(values), f"means.{key}", "at least one, each once", values)


@dataclass(frozen=True)
class Sweep:
    """A sweep file; see above."""

    recipe: PathText
    name: str = ""
    mode: Literal["offline", "online"] = "offline"
    seeds: list[Seed] = field(default_factory=lambda: [0])
    jobs: Count = 1
    points: list[Count] = field(default_factory=list)
    set: dict[str, JsonValue] = field(default_factory=dict)
    grid: dict[str, list[JsonValue]] = field(default_factory=dict)
    rows: list[dict[str, JsonValue]] = field(default_factory=list)
    means: dict[str, JsonValue] | None = None

    def __post_init__(self) -> None:
        check(self)
        expect(NAME.fullmatch(self.name) is not None, "name", "1 to 24 letters a-z, digits, '-' and '_'", self.name)
        expect(bool(self.seeds), "seeds", "at least one", self.seeds)
        expect(len({*self.seeds}) == len(self.seeds), "seeds", "each once", self.seeds)
        expect(all(self.grid.values()), "grid", "at least one value of each key", self.grid)


def file_of(path: Path) -> Path:
    """The file of a path or, in a checkout, of a name. Raises UsageError."""
    if path.is_file():
        return path
    folders = (PACKAGE.parent / "recipes/experiments", Path("recipes/experiments"))
    known = {one.stem: one for folder in folders for one in folder.glob("*.yaml")}
    if str(path) in known:
        return known[str(path)]
    raise UsageError(f"sweep {path}: no such file{nearest(path.stem, [*known])}")


def check_keys(content: dict[str, Any], kind: type, prefix: str) -> None:
    known = {one.name: one for one in dataclasses.fields(kind)}
    for key, value in content.items():
        if key not in known:
            raise UsageError(f"unknown key {prefix + str(key)!r}{nearest(str(key), list(known))}")
        expect_valid(adapters(kind)[key], f"{prefix}{key}", value)
    for key, one in known.items():
        if key not in content and one.default is one.default_factory is dataclasses.MISSING:
            raise UsageError(f"{prefix}{key}: expected {MEANT[key]}, found nothing")


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """`train: {loss: awm}` as `train.loss: awm`: what says the same has one key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        whole = key in SECTIONS and isinstance(value, dict)
        found |= {f"{key}.{own}": one for own, one in value.items()} if whole else {key: value}
    return found


def overlap(key: str, other: str) -> bool:
    """Whether a value of one is, or is part of, a value of the other: `yolo` and `yolo.weights`."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")

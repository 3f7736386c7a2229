"""A sweep file: which runs of a recipe to compare. Every row is a whole recipe, checked before any of them begins.

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

Rows are evaluated on `eval.split: validation`, unless `set` says otherwise. A row whose recipe draws other pictures
than the sweep's (group_size, task, sampler), or looks at them otherwise (ocr, yolo), gets a dataset of its own, whose
name ends in a hash of that. Another reward, `where` or watcher is the same dataset: it is drawn as the recipe alone
would draw it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from gpo_data.errors import UsageError
from gpo_data.recipe import SECTIONS, Ray, Recipe, fingerprint_of, load, nearest, section_of
from gpo_data.recipe.checks import Count, PathText, Positive, Seed, adapters, check, expect, expect_valid
from gpo_data.recipe.files import PACKAGE, read

MOST_ROWS = 10_000
MEANT = {"recipe": "a name or a file", "of": "how many seeds"}  # of keys without a default
NAME = re.compile(r"[a-z0-9_-]{1,24}")
# Keys younger than the first sweeps, whose rows are named without them: they count where they are set.
YOUNGER = {
    "online": ("num_inference_steps",),
    "sampler": ("store_unconditional",),
    "train": ("caption_dropout", "guidance_scale", "kl_judges", "kl_share", "kl_reference"),
}


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
        expect(bool(self.of), "means.of", "at least one number of seeds", self.of)
        expect(bool(self.scales), "means.scales", "at least one", self.scales)
        expect(bool(self.last), "means.last", "at least one number of iterations, or null", self.last)


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


@dataclass(frozen=True)
class Row:
    """One run.

    Args:
        name: of the run, and of its datasets in the lake.
        label: what sets it apart from the other rows, whatever its seed.
        recipe: all of it.
        drawing: what draws the groups that it is trained on offline: the same but for what is not drawn.
        of: rows whose mean it is, `scale` times as far from the base; it is not trained.
        last: of so many iterations of each; None: of their policies.
    """

    name: str
    label: str
    seed: int
    recipe: Recipe
    drawing: Recipe
    of: tuple[str, ...] = ()
    scale: float = 1.0
    last: int | None = None


@dataclass(frozen=True)
class Plan:
    """Args: ray: where the rows are run, a worker each; processes of this machine where it asks for none."""

    sweep: Sweep
    rows: list[Row]
    ray: Ray = field(default_factory=Ray)


def read_plan(path: str | Path, overrides: Sequence[str] = (), trust: bool = False) -> Plan:
    """The sweep in a file, with `--key value` of the recipe over all rows. Raises UsageError.

    Args:
        trust: the recipe may name code that is run, see recipe/trust.py.
    """
    path = _file(Path(path))
    content = read(path)
    try:
        _check_keys(content, Sweep, "")
        sweep = Sweep(**({"name": path.stem[:24]} | content))
        base = load(sweep.recipe, [*_arguments(_settled(sweep)), *overrides], trust)
        rows = list(_rows(sweep, base, list(overrides), trust))
        _expect_one_run_each(rows)
        rows = [*rows, *_means(sweep, rows)]
    except UsageError as error:
        raise UsageError(f"sweep {path}: {error}") from None
    return Plan(sweep, rows, base.ray)


def _file(path: Path) -> Path:
    """The file of a path or, in a checkout, of a name. Raises UsageError."""
    if path.is_file():
        return path
    folders = (PACKAGE.parent / "recipes/experiments", Path("recipes/experiments"))
    known = {one.stem: one for folder in folders for one in folder.glob("*.yaml")}
    if str(path) in known:
        return known[str(path)]
    raise UsageError(f"sweep {path}: no such file{nearest(path.stem, [*known])}")


def _expect_one_run_each(rows: list[Row]) -> None:
    found: dict[str, Row] = {}
    for row in rows:
        if (other := found.setdefault(row.name, row)) is not row:
            raise UsageError(
                f"rows: {other.label!r} and {row.label!r} are one run, {row.name}: expected other names or other "
                f"settings; leave one out"
            )


def _check_keys(content: dict[str, Any], kind: type, prefix: str) -> None:
    known = {one.name: one for one in dataclasses.fields(kind)}
    for key, value in content.items():
        if key not in known:
            raise UsageError(f"unknown key {prefix + str(key)!r}{nearest(str(key), list(known))}")
        expect_valid(adapters(kind)[key], f"{prefix}{key}", value)
    for key, one in known.items():
        if key not in content and one.default is one.default_factory is dataclasses.MISSING:
            raise UsageError(f"{prefix}{key}: expected {MEANT[key]}, found nothing")


def _settled(sweep: Sweep) -> dict[str, JsonValue]:
    return {"eval.split": "validation"} | sweep.set


def _rows(sweep: Sweep, base: Recipe, overrides: list[str], trust: bool) -> Iterator[Row]:
    settled, plain = _settled(sweep), load(sweep.recipe, trust=trust)
    variants = []
    for number, one in enumerate(sweep.rows):
        _check_keys(one, Variant, f"rows.{number}.")
        variants.append(Variant(**one))  # type: ignore[arg-type]
    planned = [
        (f"{variant.name} {_label(point)}".strip() or "as the recipe", variant.set | point)
        for variant in variants or [Variant()]
        for point in _points(sweep.grid | variant.grid)
    ]
    key = "train.seed" if sweep.mode == "offline" else "seed"
    asked = {argument.removeprefix("--").split("=")[0] for argument in overrides if argument.startswith("--")}
    if over := asked & {key, *(own for _, values in planned for own in values)}:
        raise UsageError(f"--{min(over)}: the sweep sets it row by row, so it cannot be one for all; change the file")
    if any(own.split(".")[0] == "ray" for _, values in planned for own in values):
        raise UsageError("ray: rows are run alike; --workers N and --ray ADDRESS say where, or `set` of the sweep")
    if len(planned) * len(sweep.seeds) > MOST_ROWS:
        raise UsageError(f"expected at most {MOST_ROWS} rows, found {len(planned) * len(sweep.seeds)}")
    if twice := next((label for label, _ in planned if [one for one, _ in planned].count(label) > 1), None):
        raise UsageError(f"rows: expected a name for each, found {twice!r} twice")
    for (label, values), seed in itertools.product(planned, sweep.seeds):
        recipe = load(sweep.recipe, [*_arguments(settled | values | {key: seed}), *overrides], trust)
        recipe = dataclasses.replace(recipe, ray=Ray())  # the sweep's own: it runs the rows
        if sweep.mode == "offline":
            recipe = dataclasses.replace(recipe, name=_dataset(recipe, base))
        digest = _digest(recipe, sweep)
        yield Row(f"{sweep.name}-{_slug(label)}-{digest}-s{seed}", label, seed, recipe, _drawing(recipe, plain))


def _means(sweep: Sweep, rows: list[Row]) -> Iterator[Row]:
    if sweep.means is None:
        return
    _check_keys(sweep.means, Means, "means.")
    means = Means(**sweep.means)  # type: ignore[arg-type]
    if uneven := next((of for of in means.of if len(sweep.seeds) % of), None):
        raise UsageError(f"means.of: expected divisors of {len(sweep.seeds)}, the number of seeds, found {uneven}")
    fewest = min((row.recipe.online.iterations for row in rows), default=0) if sweep.mode == "online" else 0
    if over := next((last for last in means.last if (last or 0) > fewest), None):
        raise UsageError(f"means.last: expected null, or online at most the {fewest} iterations of each, found {over}")
    for of, last, scale in itertools.product(means.of, means.last, means.scales):
        for first in range(0, len(rows), of):
            one, names = rows[first], tuple(row.name for row in rows[first : first + of])
            changed = [
                *([f"mean of {of}"] if of > 1 else []),
                *([f"last {last}"] if last else []),
                *([f"x {scale:g}"] if scale != 1 else []),
            ]
            if not changed:
                continue  # the run itself
            digest = _hash(f"{names} {scale:g}" + (f" {last}" if last else ""))
            name = f"{sweep.name}-{_slug(one.label)}-{digest}-m{one.seed}"
            label = ", ".join([one.label, *changed])
            yield dataclasses.replace(one, name=name, label=label, of=names, scale=scale, last=last)


def _dataset(recipe: Recipe, base: Recipe) -> str:
    """The name of what the row is trained on: that of `base`, unless its pictures or measurements are others."""
    other = recipe.fingerprint()
    if _evaluated(recipe) != _evaluated(base):
        other = fingerprint_of({"drawn": other} | _evaluated(recipe))
    return str(recipe.name) if other == base.fingerprint() else f"{recipe.name}-{other[:6]}"


def _evaluated(recipe: Recipe) -> dict[str, Any]:
    """How pictures to train on are measured: watchers play no part in it, nor what a reward makes of it."""
    sections = {section_of(name) for name in recipe.evaluators} & SECTIONS.keys()
    return {"evaluators": recipe.evaluators} | {name: dataclasses.asdict(getattr(recipe, name)) for name in sections}


def _drawing(recipe: Recipe, plain: Recipe) -> Recipe:
    """Rows of one dataset agree in it, whatever their rewards are.

    `plain`: the recipe alone, whose reward such a dataset has if somebody drew it before.
    """
    same = recipe.evaluators == plain.evaluators
    paid = plain if same else recipe
    return dataclasses.replace(
        recipe,
        watchers=[],
        reward="" if paid.rewards else paid.reward,
        rewards=paid.rewards,
        reward_weights=paid.reward_weights,
    )


def _points(grid: dict[str, list[JsonValue]]) -> Iterator[dict[str, JsonValue]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _label(point: dict[str, JsonValue]) -> str:
    return ", ".join(f"{key.removeprefix('train.')} {_text(value)}" for key, value in point.items())


def _arguments(values: dict[str, Any]) -> list[str]:
    """As on a command line."""
    return [f"--{key}={_text(value)}" for key, value in values.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:30].strip("-")


def _digest(recipe: Recipe, sweep: Sweep) -> str:
    """Of all that a row's result depends on, where it is run aside."""
    content = dataclasses.asdict(recipe)
    del content["lake"]
    for section, keys in YOUNGER.items():
        usual = dataclasses.asdict(SECTIONS[section]())
        for key in keys:
            if content[section][key] == usual[key]:
                del content[section][key]
    if sweep.points:
        content["points"] = sorted(sweep.points)
    return _hash(f"{sweep.mode} {json.dumps(content, sort_keys=True)}")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()

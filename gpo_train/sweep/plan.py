"""The rows of a sweep file (file.py). Every row is a whole recipe, checked before any of them begins.

Rows are evaluated on `eval.split: validation`, unless `set` says otherwise. A row whose recipe draws other pictures
than the sweep's (group_size, task, sampler), or looks at them otherwise (ocr, yolo), gets a dataset of its own, whose
name ends in a hash of that. Another reward, `where` or watcher is the same dataset: it is drawn as the recipe alone
would draw it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from gpo_data.errors import UsageError
from gpo_data.generation.reward import expect_declared_reward
from gpo_data.recipe import SECTIONS, Ray, Recipe, fingerprint_of, load, nearest, section_of
from gpo_data.recipe.files import read
from gpo_data.recipe.parse import SHORT, values_of
from gpo_data.tasks import TASKS
from gpo_train.run import LONGEST
from gpo_train.sweep.file import Means, Sweep, Variant, check_keys, file_of, flat, overlap

MOST_ROWS = 10_000
# Keys younger than the first sweeps, whose rows are named without them: they count where they are set.
YOUNGER = {
    "online": ("num_inference_steps",),
    "sampler": ("store_unconditional",),
    "train": ("caption_dropout", "guidance_scale", "kl_judges", "kl_share", "kl_reference"),
}


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
    """All rows of a sweep, and which of them to run.

    Args:
        ray: where the rows are run, a worker each; processes of this machine where it asks for none.
        left_out: names of rows that are not run now; the page has what is there of them.
    """

    sweep: Sweep
    rows: list[Row]
    ray: Ray = field(default_factory=Ray)
    left_out: frozenset[str] = frozenset()

    @property
    def asked(self) -> list[Row]:
        return [row for row in self.rows if row.name not in self.left_out]

    def only(self, labels: Sequence[str], seeds: Sequence[int]) -> Plan:
        """Of these labels, or patterns of them, and these seeds, and the means that such a row is part of. A mean's own
        label is the rows that it is of.

        An empty sequence is all. Raises UsageError where there is no such row.
        """
        known = list(dict.fromkeys(row.label for row in self.rows))
        chosen: set[str] = set()
        for label in labels:  # one may look like a pattern itself: a grid's values may be lists
            if not (found := [label] if label in known else fnmatch.filter(known, label)):
                raise UsageError(f"--rows {label!r}: no such row{nearest(label, known)}")
            chosen |= {*found}
        if other := [seed for seed in seeds if seed not in self.sweep.seeds]:
            raise UsageError(f"--seeds {other[0]}: expected some of {self.sweep.seeds}, the seeds of the file")
        named = {name for row in self.rows if not labels or row.label in chosen for name in row.of or [row.name]}
        run = {row.name for row in self.rows if row.name in named and (not seeds or row.seed in seeds)}
        left_out = frozenset(row.name for row in self.rows if run.isdisjoint(row.of or [row.name]))
        return dataclasses.replace(self, left_out=left_out)


def read_plan(path: str | Path, overrides: Sequence[str] = (), trust: bool = False) -> Plan:
    """The sweep in a file, with `--key value` of the recipe over all rows. Raises UsageError.

    Args:
        trust: the recipe may name code that is run, see recipe/trust.py.
    """
    path = file_of(Path(path))
    content = read(path)
    try:
        check_keys(content, Sweep, "")
        sweep = Sweep(**({"name": path.stem[:24]} | content))
        base = load(sweep.recipe, [*_arguments(_settled(sweep)), *overrides], trust)
        rows = list(_rows(sweep, base, overrides, trust))
        _expect_rewards(sweep, rows)
        rows = [*rows, *_means(sweep, rows)]
        _expect_one_run_each(rows)
    except UsageError as error:
        raise UsageError(f"sweep {path}: {error}") from None
    return Plan(sweep, rows, base.ray)


def _expect_one_run_each(rows: list[Row]) -> None:
    found: dict[str, Row] = {}
    for row in rows:
        if (other := found.setdefault(row.name, row)) is not row:
            raise UsageError(
                f"rows: {other.label!r} and {row.label!r} are one run, {row.name}: expected other names or other "
                f"settings; leave one out"
            )


def _expect_rewards(sweep: Sweep, rows: list[Row]) -> None:
    """Raise UsageError for a reward that reads what will not be there, hours before its row would. Prompts out of a
    file, and datasets that are there, may have columns of their own: then the row itself says it."""
    own = [row for row in rows if sweep.mode == "online" and row.recipe.task.prompts is None]
    for row in {(one.recipe.reward, *one.recipe.evaluators, *one.recipe.watchers): one for one in own}.values():
        try:
            expect_declared_reward(row.recipe, TASKS[row.recipe.task.kind].columns)
        except UsageError as error:
            raise UsageError(f"rows: {row.label!r}: {error}") from None


def _settled(sweep: Sweep) -> dict[str, JsonValue]:
    return {"eval.split": "validation"} | flat(sweep.set)


def _rows(sweep: Sweep, base: Recipe, overrides: Sequence[str], trust: bool) -> Iterator[Row]:
    settled, plain = _settled(sweep), load(sweep.recipe, trust=trust)
    variants = []
    for number, one in enumerate(sweep.rows):
        check_keys(one, Variant, f"rows.{number}.")
        variants.append(Variant(**one))  # type: ignore[arg-type]
    planned = [
        (f"{variant.name} {_label(point)}".strip() or "as the recipe", flat(variant.set) | flat(point))
        for variant in variants or [Variant()]
        for point in _points(sweep.grid | variant.grid)
    ]
    key = "train.seed" if sweep.mode == "offline" else "seed"
    owned = {own for _, values in planned for own in values}
    if key in owned | settled.keys():
        raise UsageError(
            f"{key}: expected none in set, grid and rows, since each seed of `seeds:` is one; use `seeds:`"
        )
    asked = flat(dict(values_of(overrides)))
    if over := [one for one in asked for own in (key, *owned) if overlap(one, own)]:
        raise UsageError(f"--{min(over)}: the sweep sets it row by row, so it cannot be one for all; change the file")
    if any(own.split(".")[0] in ("ray", *SHORT) for own in owned):
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
        name = _name(sweep, label, f"{_digest(recipe, sweep)}-s{seed}")
        yield Row(name, label, seed, recipe, _drawing(recipe, plain))


def _means(sweep: Sweep, rows: list[Row]) -> Iterator[Row]:
    if sweep.means is None:
        return
    check_keys(sweep.means, Means, "means.")
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
            name = _name(sweep, one.label, f"{digest}-m{one.seed}")
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


def _name(sweep: Sweep, label: str, rest: str) -> str:
    """Of a run: `rest` sets it apart, so that the label is cut where all would be longer than a run's name is."""
    room = min(30, LONGEST - len(f"{sweep.name}--{rest}"))
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:room].strip("-")
    return f"{sweep.name}-{slug}-{rest}"


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

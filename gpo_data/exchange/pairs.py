"""Pairs of a dataset's members: which is better than which, by a reward.

    best     of each group its best and its worst member; of equal ones the first
    margin   of each group every (i, j) with r_i - r_j >= margin, the widest first

What always holds: the order is the groups' own, then of falling difference; a group in which all are equal has no pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa

from gpo_data.lake import catalog
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.record import PLACE, Record
from gpo_data.lake.shard import dataset_folder
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.lake.watched import refuse_watched, watched_columns
from gpo_data.recipe import Recipe
from gpo_data.tasks import TASKS


@dataclass(frozen=True)
class Side:
    """A member of a pair."""

    member: int
    seed: int
    reward: float


@dataclass(frozen=True)
class Pair:
    """`better` has more reward than `worse`; both are members of the group at `record`."""

    key: str
    prompt_id: str
    prompt: str
    record: Record
    better: Side
    worse: Side

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.key}-{self.better.member:02d}-{self.worse.member:02d}"


def choose(recipe: Recipe, margin: float | None = None) -> list[Pair]:
    """The pairs of the recipe's dataset by its `reward` and `where`. Raises UsageError.

    Args:
        margin: smallest difference of rewards; None: best and worst.
    """
    folder = dataset_folder(recipe.lake, str(recipe.name))
    refuse_watched(recipe.reward, watched_columns(folder, read_manifest(folder), recipe.watchers))
    con = catalog.connect(recipe.lake, recipe.name)
    targets = tuple(TASKS[recipe.task.kind].columns)
    table = take_snapshot(con, str(recipe.name), recipe.reward, recipe.where, targets=targets)
    return [pair for group in _groups(table, str(folder)) for pair in _of_group(group, margin)]


@dataclass(frozen=True)
class _Members:
    key: str
    prompt_id: str
    prompt: str
    record: Record
    sides: list[Side]


def _groups(table: pa.Table, folder: str) -> Iterator[_Members]:
    names = ("group_key", "prompt_id", "prompt", "member", "seed", "reward", *PLACE)
    for key, rows in groupby(table.select(names).to_pylist(), key=lambda row: str(row["group_key"])):
        first, *rest = rows
        sides = [Side(row["member"], row["seed"], row["reward"]) for row in (first, *rest)]
        yield _Members(key, first["prompt_id"], first["prompt"], Record.of(first, folder), sides)


def _of_group(group: _Members, margin: float | None) -> list[Pair]:
    def pair(better: Side, worse: Side) -> Pair:
        return Pair(group.key, group.prompt_id, group.prompt, group.record, better, worse)

    best_first = sorted(group.sides, key=lambda side: (-side.reward, side.member))
    if margin is None:
        worst = min(group.sides, key=lambda side: (side.reward, side.member))
        return [pair(best_first[0], worst)] if best_first[0].reward > worst.reward else []
    wide = [
        (a, b)
        for i, a in enumerate(best_first)
        for b in best_first[i + 1 :]
        if a.reward > b.reward and a.reward - b.reward >= margin
    ]
    return [pair(a, b) for a, b in sorted(wide, key=lambda two: two[1].reward - two[0].reward)]

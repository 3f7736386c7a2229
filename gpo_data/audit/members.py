"""A dataset's members as matrices.

A matrix is [groups, G] float64: row g is a group (sorted by key), column m a member; NaN where the member failed, is
missing, or was left out by the condition. What is not a number (prompts, what was read, places in tars) is asked for
when a page shows it, of few groups: a hundred million members are matrices of 0.8 GB each.

What always holds: every group has at least one measured member, and rewards are finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from gpo_data.errors import RunError, UsageError, few
from gpo_data.lake import catalog, locked, shard
from gpo_data.lake.columns import Columns, taken_from
from gpo_data.lake.files import open_lake
from gpo_data.lake.manifest import Manifest, read_manifest
from gpo_data.lake.record import PLACE
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.sidecar import REPAIR
from gpo_data.lake.snapshot import expect_values
from gpo_data.lake.sql import identifier
from gpo_data.lake.views import is_number
from gpo_data.lake.watched import declared, refuse_watched, watched_columns
from gpo_data.recipe import EVALUATORS
from gpo_data.recipe.checks import MOST_MEMBERS
from gpo_data.status import OK
from gpo_data.tasks import TASKS

IMAGE_STATISTICS = ("entropy", "edge_density", "dark_fraction")


@dataclass(frozen=True)
class Members:
    folder: AnyPath
    name: str
    task: str  # text, count or align
    model: str
    fingerprint: str
    reward: str  # the expression, for the reader of the page
    where: str | None
    failed: list[tuple[str, int]]  # (reason, members), the most frequent first
    drawn: int  # members in the dataset, whatever the condition
    connection: duckdb.DuckDBPyConnection  # that `rows` asks
    keys: pa.Array  # [groups]
    rewards: np.ndarray  # [groups, G]
    exact: np.ndarray  # [groups, G]: 1 right, 0 wrong
    levels: np.ndarray  # [groups] int: characters of the target, things to draw, or words of the prompt
    image_statistics: dict[str, np.ndarray]  # each [groups, G]; those of watchers too
    watched: list[str]  # columns that are only watched, of those

    @property
    def shape(self) -> tuple[int, int]:
        """(groups, G)"""
        return self.rewards.shape[0], self.rewards.shape[1]

    @property
    def level_name(self) -> str:
        return TASKS[self.task].level_name

    def rows(self, group: int) -> dict[int, dict[str, Any]]:
        """A group's members by their number: key, prompt, what was read, place in the tar. Raises UsageError."""
        kind = TASKS[self.task]
        names = dict.fromkeys(["group_key", "prompt", "member", *kind.columns, *kind.measured, *PLACE])
        sql = f"select {', '.join(map(identifier, names))} from drawn_members where dataset = ? and group_key = ?"
        found = locked.answer(self.connection, sql, [self.name, self.keys[group].as_py()])
        return {row["member"]: row for row in found.to_pylist()}


def read(lake: str, dataset: str, reward: str | None, where: str | None, watchers: Sequence[str] = ()) -> Members:
    """Query the catalog. Raises UsageError and RunError, see `audit.run`."""
    folder = shard.dataset_folder(lake, dataset)
    manifest = _manifest(folder, lake, dataset)
    recipe = manifest.recipe
    task = (recipe.get("task") or {}).get("kind")
    if task not in TASKS:
        raise UsageError(f"{folder / 'dataset.json'}: recipe.task.kind: expected {' or '.join(TASKS)}, found {task!r}")
    watched = watched_columns(folder, manifest, watchers)
    if reward is not None:
        refuse_watched(reward, watched)
    connection = catalog.scored(catalog.connect(lake, dataset, copies=True), reward, dataset)
    counts = [
        tuple(row.values())
        for row in locked.answer(
            connection,
            "select status, coalesce(status_reason, status) as reason, count(*) as n from members where dataset = ? "
            "group by 1, 2 order by 3 desc, 2",
            [dataset],
            reward,
        ).to_pylist()
    ]
    drawn, failed = sum(n for *_, n in counts), [(str(reason), n) for code, reason, n in counts if code != OK]
    if not drawn:
        raise RunError(f"dataset {dataset} in {lake}: expected committed shards, found none; run `{command(dataset)}`")
    columns = {row[0]: row[1] for row in connection.execute("describe members").fetchall()}
    expect_right(task, columns, f"dataset {dataset}")
    watched = [name for name in watched if is_number(columns.get(name, ""))]
    statistics = dict.fromkeys([*(name for name in IMAGE_STATISTICS if name in columns), *watched])
    table = _query(connection, dataset, reward, where, [*statistics])
    # A condition leaves members out on purpose; without one, whoever has no reward or no reading is counted here.
    if not where and (lost := drawn - sum(n for _, n in failed) - table.num_rows):
        failed.append(("no reward or no reading", lost))
    if not table.num_rows:
        known = f"select count(*), count(exact) from members where dataset = ? and status = '{OK}'"
        if (ok := connection.execute(known, [dataset]).fetchall()[0])[0] and not ok[1]:
            expect_right(task, columns.keys() - {*TASKS[task].measured}, f"dataset {dataset}")
        if where:
            raise UsageError(
                f"where {where!r}: expected to keep some of the {drawn} members of {dataset}, found none with a "
                f"reward; loosen the condition"
            )
        raise RunError(
            f"dataset {dataset}: expected measured members, found all {drawn} failed, most often "
            f"{failed[0][0] if failed else 'without a reward'!r}; run `{command(dataset)}` to try them again"
        )
    expect_values(table, ["group_key", "member"], dataset)
    found = taken_from(table)
    del table  # so that a column that has become a matrix is freed
    keys, levels, matrices = _matrices(found, dataset)
    return Members(
        folder=folder,
        name=dataset,
        task=task,
        model=str(recipe.get("model")),
        fingerprint=manifest.fingerprint,
        reward=reward or str(recipe.get("reward")),
        where=where,
        failed=failed,
        drawn=drawn,
        connection=connection,
        keys=keys,
        rewards=matrices["r"],
        exact=matrices["exact"],
        levels=levels,
        image_statistics={name: matrices[f"s{i}"] for i, name in enumerate(statistics)},
        watched=watched,
    )


def expect_right(task: str, columns: Iterable[str], who: str) -> None:
    """Raise UsageError, which says what is missing, unless these columns tell what is right in the task."""
    if missing := sorted(TASKS[task].reads() - {*columns}):
        ours = [name for name in EVALUATORS if {*missing} & {*declared(name)}]
        by = f"`gpo-data measure RECIPE --evaluator {ours[0]}` measures it, and so does" if ours else "so does"
        raise UsageError(
            f"{who}: what is right in task {task} is read from {', '.join(missing)}, which nothing measured; {by} any "
            f"evaluator of your own with a column of that name; task align has what the reward says"
        )


def command(dataset: str) -> str:
    """The make line that draws `dataset`; recipes are named TASK-MODEL."""
    task, _, model = dataset.partition("-")
    return f"make shards TASK={task}" + (f" MODEL={model}" if model not in ("", "tiny") else "")


def _manifest(folder: AnyPath, lake: str, dataset: str) -> Manifest:
    if not folder.is_dir():
        known = few(open_lake(None, lake).datasets())
        raise UsageError(
            f"dataset {dataset}: no such dataset in {lake} (there: {known}); run `{command(dataset)}` to draw it"
        )
    return read_manifest(folder)


def _query(
    connection: duckdb.DuckDBPyConnection,
    dataset: str,
    reward: str | None,
    where: str | None,
    statistics: Sequence[str],
) -> pa.Table:
    """group_key as a dictionary, member, r, exact, level and a column s0, s1, ... of each statistic; in any order."""
    source = "select * from members m"
    if where is not None:  # it may read what groups have
        locked.check_expression("where", where)
        source = """select m.*, g.* exclude (dataset, group_key, prompt)
                    from members m join groups g using (dataset, group_key)"""
    numbers = [f"{identifier(name)}::double as s{i}" for i, name in enumerate(statistics)]
    names = ["group_key", "member", "reward as r", "exact::double as exact", "level", *numbers]
    sql = f"""
        select {", ".join(names)} from ({source} where m.dataset = ?)
        where status = '{OK}' and isfinite(reward) and exact is not null and ({where or "true"}\n)
    """
    return locked.answer(connection, sql, [dataset], reward, where, repeated=["group_key"])


def _matrices(columns: Columns, dataset: str) -> tuple[pa.Array, np.ndarray, dict[str, np.ndarray]]:
    """(keys [groups], levels [groups], {column: matrix}) of what `_query` gave, of which nothing is left."""
    group, member = columns.pop("group_key"), columns.pop("member").to_numpy()
    if (wrong := int(member.min() if member.min() < 0 else member.max())) not in range(MOST_MEMBERS):
        key = group[int(np.flatnonzero(member == wrong)[0])]
        raise UsageError(f"dataset {dataset}: {key} member {wrong}: expected 0 to {MOST_MEMBERS - 1}; {REPAIR}")
    shape = len(group.dictionary), int(member.max()) + 1
    place = group.indices.to_numpy().astype(np.int64) * shape[1] + member  # in a matrix, row by row
    levels = np.zeros(shape[0], np.int64)
    levels[group.indices.to_numpy()] = columns.pop("level").to_numpy()
    matrices = {}
    for name in list(columns):
        matrices[name] = np.full(shape, np.nan)
        matrices[name].reshape(-1)[place] = columns.pop(name).to_numpy(zero_copy_only=False)
    if np.isfinite(matrices["r"]).sum() < len(place):
        place.sort()
        row, number = divmod(int(place[1:][place[1:] == place[:-1]][0]), shape[1])
        raise UsageError(f"dataset {dataset}: {group.dictionary[row]} member {number} is there twice; {REPAIR}")
    return group.dictionary, levels, matrices

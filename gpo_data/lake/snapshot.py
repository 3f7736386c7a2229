"""The snapshot: what a run trains on, frozen: a dataset's members with their advantages.

    dataset, group_key, prompt_id, prompt, member, seed, reward, tar, offset, size, crc32     of the catalog's `members`
    lender          whose member it is, where members are borrowed (relabel.py)
    reward_<name>   of each reward of several
    bonus           what the advantage was multiplied with before it was clipped (novelty.py)
    uncertainty     how much other judges doubt the reward (uncertainty.py), and kl_weight, 1 of those that are gated
    advantage       (advantage.py)

    by group_key and member; own members before borrowed ones

What always holds: the same lake and the same question give the same table, bit for bit: advantages are computed in
numpy, in a fixed order, since DuckDB's parallel sums differ in the last bit from run to run.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpo_data.errors import UsageError, few
from gpo_data.lake import locked
from gpo_data.lake.advantage import Scale, extremes, standardise, together
from gpo_data.lake.catalog import scored
from gpo_data.lake.columns import Columns, changes, codes, pick, pieces_of_bytes, taken_from
from gpo_data.lake.novelty import as_features, bonus, feature_rows
from gpo_data.lake.sidecar import GROUP_COLUMNS, REPAIR
from gpo_data.lake.sql import identifier, quote
from gpo_data.lake.uncertainty import as_numbers, expect_finite, gated, uncertainty
from gpo_data.status import OK

TEXT = ("dataset", "group_key", "prompt_id", "prompt", "tar")  # as dictionaries
COLUMNS = (*TEXT[:4], "member", "seed", "reward", "tar", "offset", "size", "crc32")


def take_snapshot(
    con: duckdb.DuckDBPyConnection,
    dataset: str,
    reward: str | None = None,
    where: str | None = None,
    keep_dead: bool = False,
    relabel: str | None = None,
    targets: tuple[str, ...] = (),
    members: int | None = None,
    scale: Scale | None = None,
    rewards_of: Sequence[tuple[str, str, float]] = (),
    features: str | None = None,
    judges: Sequence[str] = (),
    share: float = 1.0,
) -> pa.Table:
    """The groups and advantages that a run trains on.

    Args:
        con: of `catalog.connect`.
        reward: expression in the place of the stored reward.
        where: SQL condition on the columns of members and groups; filters members before standardisation.
        keep_dead: keep groups whose rewards are all equal, with advantages of 0 (for losses that compare nothing).
        relabel: see relabel.py, with the task's `targets`.
        members: of each group keep so many, its best and its worst, with the advantages that they have among all.
        scale: of advantages; None divides by the group's std.
        rewards_of: (name, expression, weight) of the rewards whose weighted sum `reward` is; each is standardised by
            itself before they are summed for the advantages.
        features: expression for a list of numbers, by which members are alike.
        judges: expressions for numbers, by which the reward is doubted.
        share: of the members whose uncertainty is above 0 that are gated.

    The table's metadata: `digest` (16 bytes of blake2b over keys, members, seeds, rewards and checksums, hex),
    `groups` kept, `dead_groups` dropped for a std of 0, `failed_members` left out. Raises UsageError.
    """
    _expect_whole(con, dataset)
    own = scored(con, reward, dataset, relabel, targets)
    source = "SELECT * FROM members m"
    if where is not None:  # it may read what groups have
        locked.check_expression("where", where)
        statistics = ", ".join(f"g.{identifier(name)}" for name in GROUP_COLUMNS)
        source = f"SELECT m.*, {statistics} FROM members m LEFT JOIN groups g USING (dataset, group_key)"
    chosen = f"FROM ({source} WHERE m.dataset = {quote(dataset)}) WHERE ({where or 'true'}\n)"
    lent = ["lender"] if relabel is not None else []
    wanted = [*map(identifier, (*COLUMNS, *lent)), *_measured(own, rewards_of, features, judges)]
    table = locked.answer(
        own,
        f"SELECT {', '.join(wanted)} {chosen} AND status = '{OK}' AND reward IS NOT NULL",
        reward=reward,
        where=where,
        repeated=[*TEXT, *lent],
    )
    failed = locked.answer(own, f"SELECT count(*) AS n {chosen} AND status <> '{OK}'", reward=reward, where=where)
    expect_values(table, COLUMNS, dataset)
    columns = taken_from(table)
    del table  # so that what is replaced below is freed
    _order(columns)
    _refuse_twins(columns, dataset)
    group = codes(columns["group_key"])
    alive = _with_advantages(columns, group, scale or Scale(), rewards_of, features)
    if judges:
        _with_doubts(columns, judges)
    kept = np.ones(len(group), bool) if keep_dead else alive[group]
    if members is not None:
        kept &= extremes(group, columns["advantage"].to_numpy(), members)
        if lent:
            _keep_an_own(kept, group, columns)
    if not kept.all():
        pick(columns, kept)
    if judges:
        gate = gated(columns["uncertainty"].to_numpy(), share)
        columns["kl_weight"] = pa.array(gate.astype(np.float64))
    if lent:
        _expect_own_members(columns, dataset)
    frozen = pa.table(columns)
    facts = {
        "digest": digest(frozen),
        "groups": str(len(alive) if keep_dead else int(alive.sum())),
        "dead_groups": str(int((~alive).sum())),
        "failed_members": str(failed["n"][0].as_py()),
    }
    return frozen.replace_schema_metadata(facts)


def _measured(
    own: duckdb.DuckDBPyConnection,
    rewards_of: Sequence[tuple[str, str, float]],
    features: str | None,
    judges: Sequence[str],
) -> list[str]:
    """SQL of the columns that advantages and doubts are made of: reward_<name>, features, judge_<i>."""
    for name, expression, _ in rewards_of:
        locked.check_expression(f"rewards.{name}", expression)
    found = [f"CAST(({sql}\n) AS DOUBLE) AS {identifier(f'reward_{name}')}" for name, sql, _ in rewards_of]
    if features is not None:
        found.append(f"{as_features(own, features)} AS features")
    return found + [f"{sql} AS judge_{i}" for i, sql in enumerate(as_numbers(own, judges))]


def _order(columns: Columns) -> None:
    """By group and member, own members before borrowed ones, and those by their lenders."""
    by = [codes(columns["group_key"]), columns["member"].to_numpy()]
    if "lender" in columns:
        by[1:1] = [_borrowed(columns), codes(columns["lender"])]
    risen, level = np.zeros(max(len(by[0]) - 1, 0), bool), np.ones(max(len(by[0]) - 1, 0), bool)
    for values in by:
        risen |= level & (values[1:] > values[:-1])
        level &= values[1:] == values[:-1]
    if not (risen | level).all():  # DuckDB gives most datasets in the order of their shards
        pick(columns, np.lexsort(by[::-1]))


def _borrowed(columns: Columns) -> np.ndarray:
    """[n]: whether another group drew the member."""
    key, lender = columns["group_key"], columns["lender"]
    same = pc.fill_null(pc.index_in(lender.dictionary, key.dictionary), -1).to_numpy()
    borrowed: np.ndarray = same[codes(lender)] != codes(key)
    return borrowed


def _with_advantages(
    columns: Columns,
    group: np.ndarray,
    scale: Scale,
    rewards_of: Sequence[tuple[str, str, float]],
    features: str | None,
) -> np.ndarray:
    """[groups]: which are alive. Adds `advantage`, and `bonus` in the place of `features`."""
    groups = len(columns["group_key"].dictionary)
    values = _floats(columns["reward"])
    if rewards_of:
        each = [_floats(columns[f"reward_{name}"]) for name, _, _ in rewards_of]
        values = together(group, each, [weight for _, _, weight in rewards_of], groups, scale)
    advantages, alive = standardise(group, values, groups, dataclasses.replace(scale, clip=None))
    if features is not None:
        factor = bonus(group, advantages, feature_rows(columns.pop("features"), features))
        advantages = advantages * factor
        columns["bonus"] = pa.array(factor)
    if scale.clip is not None:
        advantages = advantages.clip(-scale.clip, scale.clip)
    columns["advantage"] = pa.array(advantages)
    return alive


def _with_doubts(columns: Columns, judges: Sequence[str]) -> None:
    """Adds `uncertainty` in the place of judge_<i>."""
    told = [expect_finite(columns.pop(f"judge_{i}"), judge) for i, judge in enumerate(judges)]
    columns["uncertainty"] = pa.array(uncertainty(_floats(columns["reward"]), told))


def _floats(column: pa.Array) -> np.ndarray:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)


def _expect_whole(con: duckdb.DuckDBPyConnection, dataset: str) -> None:
    """Raise UsageError where the dataset has no committed shard, or one that was not drawn by its dataset.json."""
    if not con.execute("SELECT 1 FROM drawn_members WHERE dataset = $1 LIMIT 1", [dataset]).fetchall():
        present = [row[0] for row in con.execute("SELECT dataset FROM present ORDER BY 1").fetchall()]
        raise UsageError(
            f"dataset {dataset!r}: no committed shard; draw it with `gpo-data shards`; the lake has: {few(present)}"
        )
    _check_fingerprints(con, dataset)


def expect_values(table: pa.Table, names: Sequence[str], dataset: str) -> None:
    """Raise UsageError where a member's row does not say what and where it is, in the columns `names`."""
    for name in names:
        if missing := table[name].null_count:
            raise UsageError(f"dataset {dataset}: {missing} of {len(table)} members have no {name}; {REPAIR}")


def _keep_an_own(kept: np.ndarray, group: np.ndarray, columns: Columns) -> None:
    """Where only borrowed members were kept, the own one furthest from the mean takes the place of the nearest of them.

    A group's own record has its prompt's embedding, which all its members are trained with.
    """
    own, far = ~_borrowed(columns), np.abs(columns["advantage"].to_numpy())
    for number in np.setdiff1d(group[kept], group[kept & own]):
        there = np.flatnonzero(group == number)
        if len(mine := there[own[there]]):
            borrowed = there[kept[there]]
            kept[borrowed[far[borrowed].argmin()]] = False
            kept[mine[far[mine].argmax()]] = True


def _expect_own_members(columns: Columns, dataset: str) -> None:
    """Raise UsageError where a group has borrowed members alone."""
    group, keys = codes(columns["group_key"]), columns["group_key"].dictionary
    own = np.bincount(group, ~_borrowed(columns), len(keys))
    if not own.all():
        key = keys[int(own.argmin())].as_py()
        raise UsageError(f"where: leaves group {dataset}/{key} no member of its own, only borrowed ones")


def _refuse_twins(columns: Columns, dataset: str) -> None:
    """Raise UsageError where a member is there twice: two rows of measures for one member would do that."""
    names = [name for name in ("group_key", "lender", "member") if name in columns]
    changed = np.logical_or.reduce([changes(columns[name]) for name in names])  # twins follow each other
    if not changed.all():
        key, member = (columns[name][int(changed.argmin())].as_py() for name in ("group_key", "member"))
        raise UsageError(f"dataset {dataset}: {key} member {member} is there twice; {REPAIR}")


def _check_fingerprints(con: duckdb.DuckDBPyConnection, dataset: str) -> None:
    """Raise UsageError where a shard was not drawn by the recipe in dataset.json."""
    found = con.execute(
        """SELECT file_name, f.fingerprint, d.fingerprint FROM footers f LEFT JOIN datasets d USING (dataset)
           WHERE dataset = $1 AND f.fingerprint IS DISTINCT FROM d.fingerprint ORDER BY 1 LIMIT 1""",
        [dataset],
    ).fetchall()
    for path, fingerprint, expected in found:
        if expected is None:
            raise UsageError(
                f"dataset {dataset}: dataset.json has no fingerprint; it is missing or damaged: restore it"
            )
        raise UsageError(
            f"{path}: fingerprint {fingerprint}, expected {expected}, the one of dataset.json: another recipe drew it; "
            f"{REPAIR}"
        )


def digest(table: pa.Table) -> str:
    """Of a snapshot's content; the advantages follow from it, or, with `members`, from the dataset's whole groups."""
    state = hashlib.blake2b(digest_size=16)
    for piece in pieces_of_bytes(table["group_key"]):
        state.update(piece)
    for name, kind in (("member", "<i8"), ("seed", "<i8"), ("reward", "<f8"), ("crc32", "<i8")):
        state.update(table[name].to_numpy().astype(kind, copy=False))
    for name in (name for name in table.column_names if name in ("bonus", "kl_weight") or name.startswith("reward_")):
        state.update(name.encode())
        state.update(table[name].to_numpy().astype("<f8", copy=False))
    return state.hexdigest()

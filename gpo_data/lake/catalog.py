"""The catalog: DuckDB views over a lake; nothing is copied, no database file is kept.

    members    one row a drawn image: dataset, the sidecar's columns, measures/<evaluator>@<version>/ columns, shard
    groups     one row a group: n, failed, mean, std, min, max, best_of_n, best_member, dead
    shards     one row a committed shard: groups, members, failed, tar_bytes, tar_sha256
    datasets   one row a dataset.json

    snapshot   a dataset's members with their advantages (advantage.py), as a run trains on them

What always holds: the views read `dataset=*/shard-*.parquet`, so only committed shards are seen; group statistics are
over members whose status is 'ok' (`n` counts those, `failed` the others); an empty lake gives typed empty views. Where
a measures sidecar has a column that the shard has too, its value wins, the newest version first; where it has no
value (NULL), the older one stands. A question changes nothing: another reward is another relation (`scored`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpo_data.errors import UsageError, few
from gpo_data.lake import locked, rewards, views
from gpo_data.lake.advantage import Scale, extremes, standardise, together
from gpo_data.lake.damaged import conflicting
from gpo_data.lake.files import open_lake, require
from gpo_data.lake.novelty import as_features, bonus, feature_rows
from gpo_data.lake.relabel import relabelled
from gpo_data.lake.sidecar import REPAIR
from gpo_data.lake.sql import identifier, quote
from gpo_data.lake.uncertainty import as_numbers, expect_finite, gated, uncertainty
from gpo_data.lake.views import columns_of, is_number
from gpo_data.status import FAILED_REWARD, OK, REWARD_REASON

VIEWS = ("members", "groups", "shards", "datasets")
SNAPSHOT = ("dataset", "group_key", "prompt_id", "prompt", "member", "seed", "reward", "tar", "offset", "size", "crc32")


def connect(
    lake: str,
    dataset: str | Sequence[str] | None = None,
    unsafe: bool = False,
    whole: bool = False,
    copies: bool | None = None,
) -> duckdb.DuckDBPyConnection:
    """An in-memory connection with the four views and the reward macros, which reads the lake and nothing else.

    Args:
        lake: a folder or an fsspec URL.
        dataset: the views show this one alone, or these, so that a question about it costs the same in a lake of
            thousands of others. None shows all.
        unsafe: may read and write any file, for the user's own SQL; never for a recipe's.
        whole: read every row first, to leave damaged datasets out that look whole by their footers.
        copies: where sidecars are many, read copies of them in few files on this machine (gathered.py). None: of a
            whole lake, and not of chosen datasets, since what a run is trained on is the lake's own.

    Raises UsageError. A damaged dataset beside others is left out, which is said on stderr.
    """
    con = duckdb.connect(config=locked.CONFIG)
    rewards.add_macros(con)
    chosen = [dataset] if isinstance(dataset, str) else dataset
    readable = views.create(con, lake, chosen, whole, dataset is None if copies is None else copies)
    if not unsafe:
        locked.lock(con, readable)
    return con


def ask(
    lake: str,
    query: str,
    parameters: Sequence[Any] = (),
    reward: str | None = None,
    unsafe: bool = False,
    dataset: Sequence[str] | None = None,
) -> pa.Table:
    """The answer to one question over the views; other arguments as of `connect` and `scored`. Raises UsageError.

    Where a damaged file stops the question, it is asked again without the datasets that are damaged.
    """
    require(lake, dataset or [])
    if not unsafe:
        locked.check_question(query)
    for whole in (False, True):
        con = connect(lake, dataset, unsafe, whole, copies=True)
        try:
            own = scored(con, reward)
            relation = own.sql(query, params=list(parameters))
            # A statement such as CREATE VIEW has no answer.
            return relation.to_arrow_table() if relation is not None else pa.table({})
        except duckdb.InterruptException:
            raise KeyboardInterrupt from None
        except duckdb.Error as error:
            of_question = isinstance(error, OF_THE_QUESTION)
            if isinstance(error, duckdb.ConversionException):  # of the question, unless two datasets differ in a column
                of_question = not conflicting(open_lake(None, lake))
            if whole or of_question:
                raise UsageError(f"query: {locked.one_line(error)}") from None
        finally:
            con.close()
    raise AssertionError("unreachable")


# What is wrong with a question and not with a file.
OF_THE_QUESTION = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ParserException,
    duckdb.PermissionException,
)


def scored(
    con: duckdb.DuckDBPyConnection,
    reward: str | None,
    dataset: str | None = None,
    relabel: str | None = None,
    targets: tuple[str, ...] = (),
) -> duckdb.DuckDBPyConnection:
    """A connection of its own on which `members` and `groups` show another reward; `con` stays as it is.

    Only of `dataset`, if given; the others keep their rewards. A member that had been measured but could not be scored
    counts again, and one whose new reward is NULL or not finite fails. None: the stored rewards. Raises UsageError.

    Args:
        relabel: cross-prompt relabelling, see relabel.py, with the task's `targets`.
    """
    own = con.cursor()
    if reward is None and relabel is None:
        return own
    source = "SELECT * FROM drawn_members"
    if relabel is not None:
        assert dataset is not None
        source = relabelled(own, dataset, relabel, targets)
    if reward is not None:
        source = _rescored(own, source, reward, dataset)
    own.execute(f"CREATE TEMP VIEW members AS {views.with_task_columns(source, columns_of(own, source))}")
    own.execute(f"CREATE TEMP VIEW groups AS {views.GROUPS}")
    return own


def _rescored(own: duckdb.DuckDBPyConnection, source: str, reward: str, dataset: str | None) -> str:
    locked.check_expression("reward", reward)
    here = f"dataset = {quote(dataset)}" if dataset is not None else "true"
    counts = f"status IN ('{OK}', '{FAILED_REWARD}') AND {here}"
    columns = own.execute(f"SELECT * FROM ({source}) LIMIT 0").description or []
    names = [c[0] for c in columns if c[0] not in ("reward", "status", "status_reason")]
    query = f"""
        SELECT * EXCLUDE (rescored_value, rescored_here) REPLACE (
            CASE WHEN rescored_here THEN rescored_value ELSE reward END AS reward,
            CASE WHEN NOT rescored_here THEN status WHEN rescored_value IS NOT NULL THEN '{OK}'
                 ELSE '{FAILED_REWARD}' END AS status,
            CASE WHEN NOT rescored_here THEN status_reason WHEN rescored_value IS NULL THEN '{REWARD_REASON}'
                 END AS status_reason)
        FROM (SELECT * REPLACE (CASE WHEN isfinite(rescored_value) THEN rescored_value END AS rescored_value)
              FROM (SELECT *, {counts} AS rescored_here,
                           CASE WHEN {counts} THEN CAST(({reward}\n) AS DOUBLE) END AS rescored_value
                    FROM ({source})))"""
    try:
        # Checked by itself first: inside the view an aggregate or a star would give a less clear message.
        kind = own.sql(f"SELECT ({reward}\n) FROM ({source}) LIMIT 0").types[0]
        if not is_number(str(kind)):
            raise UsageError(f"reward: {reward!r}: expected one number or boolean a row, found type {kind}")
        own.execute(f"SELECT * FROM ({query}) LIMIT 0")
    except duckdb.Error as error:
        raise rewards.explain(reward, error, names) from None
    return query


def snapshot(
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
    """The groups and advantages that a run trains on, frozen: SNAPSHOT columns and `advantage`, by group_key, member.

    Args:
        reward: expression in the place of the stored reward.
        where: SQL condition on the columns of members and groups; filters members before standardisation.
        keep_dead: keep groups whose rewards are all equal, with advantages of 0 (for losses that compare nothing).
        relabel: see relabel.py, with `targets`; the table then has a column `lender`, and its own members come first.
        members: of each group keep so many, its best and its worst, with the advantages that they have among all.
        scale: of advantages; None divides by the group's std.
        rewards_of: (name, expression, weight) of the rewards whose weighted sum `reward` is. Each is a column
            `reward_<name>`, and is standardised by itself before they are summed for the advantages.
        features: expression for a list of numbers, by which members are alike (novelty.py); the table then has a column
            `bonus`, what the advantage was multiplied with before it was clipped.
        judges: expressions for numbers, by which the reward is doubted (uncertainty.py); the table then has columns
            `uncertainty`, among all members, and `kl_weight`, 1 of those that are gated among the members kept, else 0.
        share: of the members whose uncertainty is above 0 that are gated.

    The table's metadata: `digest` (16 bytes of blake2b over keys, members, seeds, rewards and checksums, hex),
    `groups` kept, `dead_groups` dropped for a std of 0, `failed_members` left out. Raises UsageError.
    """
    if not con.execute("SELECT 1 FROM drawn_members WHERE dataset = $1 LIMIT 1", [dataset]).fetchall():
        present = [row[0] for row in con.execute("SELECT dataset FROM present ORDER BY 1").fetchall()]
        raise UsageError(
            f"dataset {dataset!r}: no committed shard; draw it with `gpo-data shards`; the lake has: {few(present)}"
        )
    _check_fingerprints(con, dataset)
    own = scored(con, reward, dataset, relabel, targets)
    if where is not None:
        locked.check_expression("where", where)
    chosen = f"""FROM (SELECT m.*, g.* EXCLUDE (dataset, group_key, prompt)
                       FROM members m JOIN groups g USING (dataset, group_key) WHERE m.dataset = {quote(dataset)})
                 WHERE ({where or "true"}\n)"""
    lent = relabel is not None
    names = (*SNAPSHOT, "lender") if lent else SNAPSHOT
    for name, expression, _ in rewards_of:
        locked.check_expression(f"rewards.{name}", expression)
    terms = "".join(f", CAST(({sql}\n) AS DOUBLE) AS {identifier(f'reward_{name}')}" for name, sql, _ in rewards_of)
    if features is not None:
        terms += f", {as_features(own, features)} AS features"
    terms += "".join(f", {sql} AS judge_{i}" for i, sql in enumerate(as_numbers(own, judges)))
    table = locked.answer(
        own,
        f"""SELECT {", ".join(map(identifier, names))}{terms} {chosen} AND status = '{OK}' AND reward IS NOT NULL
            ORDER BY group_key, {"lender <> group_key, lender, " if lent else ""}member""",
        reward=reward,
        where=where,
    )
    failed = locked.answer(own, f"SELECT count(*) AS n {chosen} AND status <> '{OK}'", reward=reward, where=where)
    _refuse_twins(table, dataset)
    keys = table["group_key"].combine_chunks().dictionary_encode()
    # In numpy, in a fixed order: DuckDB's parallel sums differ in the last bit from run to run.
    group, values = keys.indices.to_numpy(), table["reward"].to_numpy().astype(np.float64)
    if rewards_of:
        each = [table[f"reward_{name}"].to_numpy().astype(np.float64) for name, _, _ in rewards_of]
        values = together(group, each, [weight for _, _, weight in rewards_of], len(keys.dictionary), scale)
    scale = scale or Scale()
    advantages, alive = standardise(group, values, len(keys.dictionary), dataclasses.replace(scale, clip=None))
    if features is not None:
        factor = bonus(group, advantages, feature_rows(table["features"], features))
        advantages = advantages * factor
        table = table.drop_columns("features").append_column("bonus", pa.array(factor))
    if scale.clip is not None:
        advantages = advantages.clip(-scale.clip, scale.clip)
    if judges:
        told = [expect_finite(table[f"judge_{i}"], judge) for i, judge in enumerate(judges)]
        doubt = uncertainty(table["reward"].to_numpy().astype(np.float64), told)
        table = table.drop_columns([f"judge_{i}" for i in range(len(judges))])
        table = table.append_column("uncertainty", pa.array(doubt))
    table = table.append_column("advantage", pa.array(advantages))
    kept = np.ones(len(group), bool) if keep_dead else alive[group]
    if members is not None:
        kept &= extremes(group, advantages, members)
    table = table.filter(pa.array(kept))
    if judges:
        gate = gated(table["uncertainty"].to_numpy(), share)
        table = table.append_column("kl_weight", pa.array(gate.astype(np.float64)))
    if lent:
        keys, lenders = table["group_key"].to_pylist(), table["lender"].to_pylist()
        with_own = {key for key, lender in zip(keys, lenders, strict=True) if key == lender}
        for key in keys:
            if key not in with_own:
                raise UsageError(f"where: leaves group {dataset}/{key} no member of its own, only borrowed ones")
    facts = {
        "digest": digest(table),
        "groups": str(len(alive) if keep_dead else int(alive.sum())),
        "dead_groups": str(int((~alive).sum())),
        "failed_members": str(failed["n"][0].as_py()),
    }
    return table.combine_chunks().replace_schema_metadata(facts)


def _refuse_twins(table: pa.Table, dataset: str) -> None:
    """Raise UsageError where a member is there twice: two rows of measures for one member would do that."""
    names = [name for name in ("group_key", "lender", "member") if name in table.column_names]
    counts = table.group_by(names).aggregate([([], "count_all")])
    if counts.num_rows != table.num_rows:
        twin = counts.filter(pc.greater(counts["count_all"], 1)).slice(0, 1).to_pylist()[0]
        raise UsageError(f"dataset {dataset}: {twin['group_key']} member {twin['member']} is there twice; {REPAIR}")


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
    state.update("\0".join(table["group_key"].to_pylist()).encode())
    for name, kind in (("member", "<i8"), ("seed", "<i8"), ("reward", "<f8"), ("crc32", "<i8")):
        state.update(table[name].to_numpy().astype(kind).tobytes())
    for name in (name for name in table.column_names if name in ("bonus", "kl_weight") or name.startswith("reward_")):
        state.update(name.encode() + table[name].to_numpy().astype("<f8").tobytes())
    return state.hexdigest()

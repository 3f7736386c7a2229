"""The catalog: DuckDB views over a lake; nothing is copied, no database file is kept.

    members    one row a drawn image: dataset, the sidecar's columns, measures/<evaluator>@<version>/ columns, shard
    groups     one row a group: targets, level, n, failed, mean, std, min, max, best_of_n, best_member, exact_rate, dead
    shards     one row a committed shard: groups, members, failed, tar_bytes, tar_sha256
    datasets   one row a dataset.json

What always holds: the views read `dataset=*/shard-*.parquet`, so only committed shards are seen; group statistics are
over members whose status is 'ok' (`n` counts those, `failed` the others); an empty lake gives typed empty views. Where
a measures sidecar has a column that the shard has too, its value wins, the last measured first; where it has no
value (NULL), the older one stands. A question changes nothing: another reward is another relation (`scored`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import duckdb
import pyarrow as pa

from gpo_data.errors import UsageError
from gpo_data.lake import locked, rewards, views
from gpo_data.lake.damaged import conflicting
from gpo_data.lake.files import open_lake, require
from gpo_data.lake.relabel import relabelled
from gpo_data.lake.sql import quote
from gpo_data.lake.views import columns_of, is_number
from gpo_data.status import FAILED_REWARD, OK, REWARD_REASON

VIEWS = ("members", "groups", "shards", "datasets")


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
            with locked.stopped_by_ctrl_c():
                own = scored(con, reward)
                with nullcontext() if unsafe else locked.time_limit(own, "query"):
                    relation = own.sql(query, params=list(parameters))
                    # A statement such as CREATE VIEW has no answer.
                    return relation.to_arrow_table() if relation is not None else pa.table({})
        except duckdb.Error as error:
            of_question = isinstance(error, OF_THE_QUESTION)
            if isinstance(error, duckdb.ConversionException):  # of the question, unless two datasets differ in a column
                of_question = not conflicting(open_lake(None, lake))
            if whole or of_question:
                other = "; `--unsafe` reads other files" if isinstance(error, duckdb.PermissionException) else ""
                raise UsageError(f"query: {locked.one_line(error)}{other}") from None
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
    counts again, and one whose new reward is NULL or not finite fails. None: the stored rewards, without `relabel`.
    Raises UsageError.

    Args:
        relabel: cross-prompt relabelling, see relabel.py, with the task's `targets`.
    """
    own = con.cursor()
    if reward is None and relabel is None:
        return own
    if reward is None:
        raise UsageError("relabel: expected a reward beside it: the stored ones were given for the lenders' targets")
    source = "SELECT * FROM drawn_members"
    if relabel is not None:
        assert dataset is not None
        source = relabelled(own, dataset, relabel, targets)
    source = _rescored(own, source, reward, dataset)
    columns = columns_of(own, source)
    own.execute(f"CREATE TEMP VIEW members AS {views.with_task_columns(source, columns)}")
    own.execute(f"CREATE TEMP VIEW groups AS {views.groups_of(columns)}")
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

"""Rewards are SQL: an expression over target and measurement columns, such as `0.8*text_edit(target, ocr_text) + ...`.

    reward_i = expression(row_i),  one number or boolean a row; the named ones are the macros of rewards.sql

What always holds: an expression is checked against the typed columns before anything is drawn, a bad one is a
`UsageError` that shows the expression and DuckDB's reason, and a reward is either a finite float or None.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from gpo_data.errors import UsageError
from gpo_data.lake import locked

MACROS = Path(__file__).with_name("rewards.sql")
MEMORY = "2GB"  # for scoring a shard's members, which are a few megabytes


def add_macros(con: duckdb.DuckDBPyConnection) -> None:
    """Define the named rewards of rewards.sql on a connection."""
    con.execute(MACROS.read_text(encoding="utf-8"))


def named() -> list[str]:
    """Names of the rewards that rewards.sql defines, `text_exact`, `count_relaxed`, ...; helpers begin with `_`."""
    asked = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE NOT internal AND function_type = 'macro'"
    names = [row[0] for row in _database().cursor().execute(asked).fetchall()]
    return sorted(name for name in names if not name.startswith("_"))


def check(reward: str, columns: dict[str, pa.DataType]) -> None:
    """Raise UsageError unless `reward` gives one number a row over `columns` (targets and measurements)."""
    schema = pa.schema(list(columns.items()))
    result = _evaluate(reward, schema.empty_table())
    # An aggregate gives a row over no rows at all.
    if result.num_rows or not _is_number(result.schema.field(0).type):
        found = "an aggregate over all rows" if result.num_rows else f"type {result.schema.field(0).type}"
        raise UsageError(f"reward: {reward!r}: expected one number or boolean a row, found {found}")


def score(
    rows: pa.Table | list[dict[str, Any]], reward: str, columns: dict[str, pa.DataType] | None = None
) -> list[float | None]:
    """The reward of every row, in order; None where it is NULL or not finite. Raises UsageError.

    Args:
        rows: targets and measurements, one row a member.
        columns: types of the columns of `rows` given as dicts; without them they are inferred.
    """
    if isinstance(rows, list):
        if not rows:
            return []
        table = pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items())) if columns else None)
    else:
        table = rows
    result = _evaluate(reward, table)
    values = result.column(0).to_pylist()
    if len(values) != table.num_rows or not _is_number(result.schema.field(0).type):
        found = f"{len(values)} of type {result.schema.field(0).type} for {table.num_rows} rows"
        raise UsageError(f"reward: {reward!r}: expected one number a row, found {found}")
    numbers = [None if v is None else float(v) for v in values]
    return [v if v is not None and math.isfinite(v) else None for v in numbers]


def explain(reward: str, error: Exception, columns: list[str]) -> UsageError:
    """A UsageError that names the expression, DuckDB's reason, the columns and the named rewards."""
    return UsageError(f"reward: {locked.short(reward)}: {locked.one_line(error)}; {_choice(columns)}")


def _choice(columns: list[str]) -> str:
    return f"columns: {', '.join(columns)}; named rewards: {', '.join(named())}"


def _is_number(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            pa.types.is_floating,
            pa.types.is_integer,
            pa.types.is_decimal,
            pa.types.is_boolean,
            pa.types.is_null,
        )
    )


@functools.cache
def _database() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect(config={**locked.CONFIG, "threads": 1, "memory_limit": MEMORY, "temp_directory": ""})
    add_macros(con)
    locked.lock(con)  # it needs no file: the rows are handed over
    return con


def _evaluate(reward: str, table: pa.Table) -> pa.Table:
    try:
        locked.check_expression("reward", reward)
    except UsageError as error:
        raise UsageError(f"{error}; {_choice(table.column_names)}") from None
    con = _database().cursor()  # a cursor a call: connections are not thread-safe, the drawing process scores in two
    try:
        con.register("scored", table)
        # The line break keeps a trailing `-- comment` from hiding the parenthesis.
        with locked.time_limit(con, f"reward: {locked.short(reward)}"):
            result = con.sql(f"SELECT ({reward}\n) AS reward FROM scored").to_arrow_table()
    except duckdb.Error as error:
        raise explain(reward, error, table.column_names) from None
    finally:
        con.close()
    return result

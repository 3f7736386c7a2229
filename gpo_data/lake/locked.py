"""SQL that came with somebody's recipe is data: what it may be, and what the connection that evaluates it may do.

    check_expression   `reward`, `where`, `relabel`: exactly one SQL expression; nothing that ends it and begins another
    check_question     of the SQL prompt: exactly one statement that only reads
    lock               a connection that reads no file outside some folders, reaches no network, loads no extension,
                       and whose settings stay as they are
    answer             of a query with such expressions in it; one that does not come is an error

What always holds: a text is judged by DuckDB's own parser, never by looking for words in it. DuckDB lets whoever reads
a folder write there too (a COPY may stand in a WITH), so what writes is refused by the kind of its parsed node.
DuckDB interrupts between calls of a function and not inside one: a single call is bounded by the memory limit alone.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from gpo_data.errors import UsageError
from gpo_data.lake.columns import AT_ONCE, encoded

SECONDS = 600.0  # for one question with a recipe's expression in it; 100 million members take four minutes
# Table functions that may stand in an expression, and in a question. DuckDB has others that run SQL which its parser
# does not see (`query`), write a log, or take addresses in memory (`arrow_scan`).
TABLES = {"range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree"}
TABLES_ASKED = TABLES | {
    *("read_parquet", "parquet_scan", "parquet_schema", "parquet_metadata", "parquet_kv_metadata", "glob"),
    *("parquet_file_metadata", "read_json", "read_json_auto", "read_csv", "read_csv_auto", "read_text", "read_blob"),
    *("duckdb_columns", "duckdb_functions", "duckdb_views", "duckdb_tables", "duckdb_settings", "duckdb_types"),
    *("duckdb_memory", "pragma_table_info", "pragma_version", "summary"),
}
REFUSED = {"sleep_ms", "write_log"}  # of the functions that give a value
LONGEST = 20_000  # characters of an expression
READING = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
# A Python variable's name is not a table.
CONFIG: dict[str, str | bool | int | float | list[str]] = {"python_enable_replacements": "false"}
SETTINGS = {
    # Both fold constants before there is anything to interrupt, outside the memory limit: range(10^8) took 7 GB.
    "disabled_optimizers": "'expression_rewriter,statistics_propagation'",
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_persistent_secrets": "false",
}

# What was parsed, of a text `$1`. A SELECT of one expression has none of the other parts.
_PARSED = """
    WITH parsed AS (SELECT json_serialize_sql($1)::JSON AS j), node AS (
        SELECT j, json_extract(j, '$.statements[0].node') AS n FROM parsed)
    SELECT (j->>'$.error_message'), (j->>'$.error_type') = 'not implemented',
           coalesce(json_array_length(j, '$.statements'), 0),
           list_distinct(regexp_extract_all(j::VARCHAR, '"type":"([A-Z_]+_NODE)"', 1)),
           list_distinct(regexp_extract_all(lower(j::VARCHAR), '"function_name":"([^"]+)"', 1)),
           list_distinct(regexp_extract_all(
               lower(j::VARCHAR), '"type":"table_function".*?"function_name":"([^"]+)"', 1)),
           coalesce((n->>'$.type') = 'SELECT_NODE' AND (n->>'$.from_table.type') = 'EMPTY'
               AND json_array_length(n, '$.select_list') = 1 AND json_array_length(n, '$.modifiers') = 0
               AND json_array_length(n, '$.cte_map.map') = 0 AND json_array_length(n, '$.group_expressions') = 0
               AND (n->>'$.where_clause') IS NULL AND (n->>'$.having') IS NULL AND (n->>'$.qualify') IS NULL
               AND (n->>'$.sample') IS NULL AND json_array_length(j, '$.statements[0].named_param_map') = 0, false)
    FROM node"""


def type_of(con: duckdb.DuckDBPyConnection, key: str, text: str) -> tuple[str, str]:
    """(DuckDB's type of an expression over `members`, what was found, for people); "" where it has none.

    Raises UsageError unless it is one expression.
    """
    check_expression(key, text)
    try:
        kind = str(con.sql(f"SELECT ({text}\n) FROM members LIMIT 0").types[0])
    except duckdb.Error as error:
        return "", one_line(error)
    return kind, f"the type {kind}"


def check_expression(key: str, text: str) -> None:
    """Raise UsageError unless `text` is one SQL expression. `key` is where it stands: reward, where, relabel."""
    if len(text) > LONGEST:
        raise UsageError(f"{key}: expected at most {LONGEST} characters, found {len(text)}")
    # The line break keeps a trailing `-- comment` from hiding the parenthesis.
    found = _parse(f"SELECT ({text}\n)")
    if found.error is not None:
        raise UsageError(f"{key}: {short(text)}: {found.error}")
    if not found.alone:
        raise UsageError(f"{key}: {short(text)}: expected one SQL expression, found more than that")
    _refuse(key, text, found, TABLES)


def columns_in(text: str) -> set[str]:
    """The names of columns, and of their fields, that one SQL expression reads, in lower case."""
    con = _parser().cursor()
    try:
        (parsed,) = con.execute("SELECT json_serialize_sql($1)", [f"SELECT ({text}\n)"]).fetchall()[0]
    except duckdb.Error:
        return set()  # check_expression says what is wrong
    finally:
        con.close()
    found: set[str] = set()
    waiting = [json.loads(parsed)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            found |= {str(name).lower() for name in one.get("column_names") or []}
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else []
    return found


def check_question(query: str) -> None:
    """Raise UsageError unless `query` is one statement that only reads: SELECT, FROM, DESCRIBE, SUMMARIZE, EXPLAIN."""
    found = _parse(re.sub(r"^\s*explain\s+(analyze\s+)?", "", query, flags=re.IGNORECASE))
    if found.error is not None and not found.other_kind:
        raise UsageError(f"query: {found.error}")
    if found.other_kind or found.statements != 1:
        what = "another kind of statement" if found.other_kind else f"{found.statements} statements"
        raise UsageError(
            f"query: {short(query)}: expected one SELECT, found {what}; `--unsafe` runs any SQL, files and all"
        )
    _refuse("query", query, found, TABLES_ASKED)


def lock(con: duckdb.DuckDBPyConnection, folders: Sequence[str] = ()) -> None:
    """From here on `con`, and its cursors, read these folders alone and keep their settings."""
    listed = ", ".join("'" + folder.replace("'", "''") + "'" for folder in folders)
    con.execute(f"SET allowed_directories = [{listed}]")
    for name, value in SETTINGS.items():
        con.execute(f"SET {name} = {value}")
    con.execute("SET lock_configuration = true")


def answer(
    con: duckdb.DuckDBPyConnection,
    query: str,
    parameters: Sequence[Any] = (),
    reward: str | None = None,
    where: str | None = None,
    repeated: Sequence[str] = (),
) -> pa.Table:
    """The answer to `query`, in which these expressions stand. Raises UsageError, which shows them.

    Args:
        repeated: columns of text that become dictionaries (columns.py), piece by piece as the answer comes.
    """
    told = ", with ".join(
        f"{key}: {short(text)}" for key, text in (("where", where), ("reward", reward)) if text is not None
    )
    try:
        with time_limit(con, told or "lake"):
            relation = con.sql(query, params=list(parameters))
            if not repeated:
                return relation.to_arrow_table()
            pieces = relation.to_arrow_reader(AT_ONCE)
            return encoded(_pieces(pieces), pieces.schema, repeated)
    except duckdb.Error as error:
        raise UsageError(f"{told or 'lake'}: {one_line(error)}") from None


def _pieces(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """What Arrow raises of DuckDB's errors, while an answer comes, is DuckDB's again."""
    try:
        yield from reader
    except OSError as error:
        kind = duckdb.InterruptException if str(error).startswith("INTERRUPT") else duckdb.Error
        raise kind(str(error)) from None


@contextmanager
def stopped_by_ctrl_c() -> Iterator[None]:
    """A question that is stopped inside is a KeyboardInterrupt."""
    try:
        yield
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except RuntimeError as error:  # what DuckDB's Python package makes of Ctrl-C
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from None


@contextmanager
def time_limit(con: duckdb.DuckDBPyConnection, told: str) -> Iterator[None]:
    """Inside, a question to `con` that takes longer than SECONDS raises UsageError, which begins with `told`."""
    late = threading.Event()

    def stop() -> None:
        late.set()
        con.interrupt()

    timer = threading.Timer(SECONDS, stop)
    timer.daemon = True
    timer.start()
    try:
        with stopped_by_ctrl_c():
            yield
    except KeyboardInterrupt:
        if not late.is_set():
            raise
        raise UsageError(f"{told}: expected an answer within {SECONDS:g} s, found none; make it do less") from None
    finally:
        timer.cancel()


def one_line(error: Exception | str) -> str:
    """DuckDB's message on one line, without the picture of the query that it ends with."""
    return " ".join(re.split(r"\n\s*LINE \d+:", str(error))[0].split())


def _refuse(key: str, text: str, parsed: _Parsed, tables: set[str]) -> None:
    writing = [node.removesuffix("_NODE").removesuffix("_QUERY") for node in sorted(set(parsed.nodes) - READING)]
    functions = sorted((set(parsed.functions) & REFUSED) | (set(parsed.tables) - tables))
    if found := writing + functions:
        raise UsageError(f"{key}: {short(text)}: expected SQL that only reads the lake, found {', '.join(found)}")


def short(text: str) -> str:
    """Of a message."""
    return repr(text if len(text) <= 200 else text[:200] + "...")


@dataclass(frozen=True)
class _Parsed:
    error: str | None  # the parser's
    other_kind: bool = False  # a statement of another kind than SELECT
    statements: int = 0
    nodes: tuple[str, ...] = ()  # kinds of the queries in it
    functions: tuple[str, ...] = ()  # names of all, in lower case
    tables: tuple[str, ...] = ()  # of those that give a table
    alone: bool = False  # SELECT <one expression>, and nothing besides


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> _Parsed:
    con = _parser().cursor()  # a cursor a call: connections are not thread-safe
    try:
        error, other, statements, nodes, functions, tables, alone = con.execute(_PARSED, [text]).fetchall()[0]
        lists = tuple(nodes or ()), tuple(functions or ()), tuple(tables or ())
        return _Parsed(one_line(error) if error else None, bool(other), statements, *lists, alone)
    except duckdb.Error as error:
        return _Parsed(one_line(error))
    finally:
        con.close()


@functools.cache
def _parser() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect(config={**CONFIG, "threads": 1})
    lock(con)
    return con

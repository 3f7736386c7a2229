"""The views of the catalog, over the files of a lake; see catalog.py for what they show.

drawn_members   the sidecars dataset=*/shard-*.parquet, joined with dataset=*/measures/<evaluator>@<version>/
members         drawn_members with the task's `exact` and `level`; `groups` and `shards` follow it
present         names of all datasets with a committed shard, also of those that the others leave out

A measures file counts while its footer names the shard's present tar_sha256. It adds columns; it cannot replace those
that say what and where a member is (PROTECTED), and gets a name of its own there: `reward__ocr@2`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import duckdb
import pyarrow as pa

from gpo_data.errors import UsageError
from gpo_data.lake import locked
from gpo_data.lake.advantage import DEAD_SQL
from gpo_data.lake.damaged import leave_out
from gpo_data.lake.files import SHARDS, Files, open_lake
from gpo_data.lake.gathered import Gathered, gather
from gpo_data.lake.measures import PROTECTED, sources_of
from gpo_data.lake.sidecar import CORE, OPTIONAL, REPAIR, sidecar_schema
from gpo_data.lake.sql import DATASET_OF, identifier, listed, quote, read_parquet
from gpo_data.status import OK, sql_split
from gpo_data.tasks import TARGETS, TASKS

INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
NUMBERS = ("BOOLEAN", *INTEGERS, "UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL")

MANIFEST = ("name", "fingerprint", "created")
MANIFEST_JSON = ("fields", "recipe", "versions")


def groups_of(columns: Iterable[str]) -> str:
    """SQL of the view `groups`; `columns` are what the sidecars have of members."""
    names = set(columns)
    targets = "".join(f"any_value({name}) AS {name}, " for name in map(identifier, (n for n in TARGETS if n in names)))
    return f"""
        SELECT * EXCLUDE (spread), CASE WHEN dead THEN 0.0::DOUBLE ELSE spread END AS std
        FROM (SELECT *, {DEAD_SQL} AS dead
              FROM (SELECT dataset, group_key, any_value(prompt) AS prompt, {targets}any_value(level) AS level,
                           count(*) FILTER (status = '{OK}') AS n,
                           count(*) FILTER (status <> '{OK}') AS failed,
                           avg(reward) FILTER (status = '{OK}') AS mean,
                           stddev_pop(reward) FILTER (status = '{OK}') AS spread,
                           min(reward) FILTER (status = '{OK}') AS min,
                           max(reward) FILTER (status = '{OK}') AS max,
                           max(reward) FILTER (status = '{OK}') AS best_of_n,
                           arg_max(member, reward) FILTER (status = '{OK}') AS best_member,
                           avg(exact::INT) FILTER (status = '{OK}') AS exact_rate
                    FROM members GROUP BY dataset, group_key))"""


def is_number(kind: str) -> bool:
    """Whether DuckDB's type, such as DECIMAL(3,1), is one of numbers."""
    return kind.split("(")[0] in NUMBERS


def create(
    con: duckdb.DuckDBPyConnection,
    lake: str,
    datasets: Sequence[str] | None = None,
    whole: bool = False,
    copies: bool = True,
) -> list[str]:
    """Make the views on a connection; arguments as of `catalog.connect`. Says on stderr what is left out and why.

    Gives the folders that the views read.
    Raises UsageError: no dataset that is asked for can be read.
    """
    files = open_lake(con, lake)
    if "://" not in files.prefix:  # footers are read once; a change is noticed by the file's time
        con.execute("SET parquet_metadata_cache = true")
    asked = files.of(datasets) if datasets is not None else files
    gathered = gather(con, asked) if copies and not whole else None
    con.execute(f"""
        CREATE OR REPLACE VIEW present AS
        SELECT DISTINCT {DATASET_OF.format("file")} AS dataset FROM glob({quote(files.everywhere(SHARDS))})""")
    try:
        if whole:
            asked = leave_out(asked, whole)
        else:
            try:
                _create(con, asked, whole, gathered)
                return [*asked.readable, *([f"{gathered.folder}/"] if gathered else [])]
            except duckdb.Error as error:
                if gathered and isinstance(error, duckdb.IOException | duckdb.InvalidInputException):
                    gathered.remove()
                asked = leave_out(asked)
        _create(con, asked, whole)
    except duckdb.Error as error:
        raise UsageError(f"lake: cannot read the sidecars of {lake}: {locked.one_line(error)}; {REPAIR}") from None
    return asked.readable


def _create(con: duckdb.DuckDBPyConnection, files: Files, whole: bool, gathered: Gathered | None = None) -> None:
    # DuckDB opens every footer again for each view and each DESCRIBE: few of them, where there are thousands of files.
    columns = _stored_view(con, files, whole, gathered)
    con.execute(f"CREATE OR REPLACE VIEW members AS {with_task_columns('SELECT * FROM drawn_members', columns)}")
    con.execute(f"CREATE OR REPLACE VIEW groups AS {groups_of(columns)}")
    _shards_view(con, files, gathered)
    _datasets_view(con, files)


def _stored_view(con: duckdb.DuckDBPyConnection, files: Files, whole: bool, gathered: Gathered | None) -> list[str]:
    """Makes drawn_members; its columns."""
    shard = "parse_filename(filename, true, 'both_slash') AS shard"
    if not files.found(SHARDS):
        con.register("arrow_empty", _empty().empty_table())
        con.execute("CREATE OR REPLACE TABLE no_members AS SELECT * FROM arrow_empty")
        con.unregister("arrow_empty")
        con.execute(f"CREATE OR REPLACE VIEW drawn_members AS SELECT *, {shard} FROM no_members")
        return list(_empty().names)
    read = gathered.members if gathered else read_parquet(files, files.patterns(SHARDS))
    names = _columns(con, f"SELECT * FROM {read}")
    _check_types(con, names)
    selected, joins = {name: f"s.{identifier(name)}" for name in names}, ""
    for i, (measure, source) in enumerate(
        sources_of(con, files, whole, gathered.footers if gathered else None).items()
    ):
        joins += f"\nLEFT JOIN {source} m{i} USING (dataset, group_key, member)"
        for name, kind in _columns(con, f"SELECT * FROM {source}").items():
            if name in ("dataset", "group_key", "member", "filename"):
                continue
            new, old = f"m{i}.{identifier(name)}", selected.get(name)
            another = old is not None and name in names and kind != names[name]
            if name in PROTECTED or (another and not {kind, names[name]} <= set(NUMBERS)):
                name, old = f"{name}__{measure}", None  # another kind of value cannot take the old one's place
            selected[name] = f"coalesce({new}, {old})" if old else new
            names.setdefault(name, kind)
    stored_reason = selected.get("status_reason", "NULL::VARCHAR")  # a lake of 0.1 has none
    selected["status"], reason = sql_split(selected["status"], stored_reason)
    order = ["dataset", *(n for n in selected if n not in ("dataset", "filename", "status_reason")), "filename"]
    order.insert(order.index("status") + 1, "status_reason")
    selected["status_reason"] = reason
    columns = ", ".join(f"{selected[name]} AS {identifier(name)}" for name in order)
    con.execute(
        f"CREATE OR REPLACE VIEW drawn_members AS SELECT *, {shard} FROM (SELECT {columns} FROM {read} s {joins})"
    )
    return order


def _check_types(con: duckdb.DuckDBPyConnection, names: dict[str, str]) -> None:
    """Raise duckdb.Error where one file's column of another type has made all others of that type."""
    core = dict(zip(CORE.names, CORE.types, strict=True))
    for name, type in (core | TARGETS).items():
        if name not in names and (name in OPTIONAL or name in TARGETS):
            continue
        whole = NUMBERS if name in TARGETS else INTEGERS
        kinds = {"string": ("VARCHAR",), "double": ("DOUBLE", "FLOAT")}.get(str(type), whole)
        if names.get(name) not in kinds:
            raise duckdb.Error(f"column {name} is {names.get(name, 'missing')}, expected {type}")


def _empty() -> pa.Schema:
    """Of an empty lake; a lake with shards has the columns that its sidecars have."""
    from gpo_data.evaluators import (  # with torch; few look at an empty lake
        boxes,
        color,
        compose,
        image_stats,
        ocr,
        yolo,
    )

    modules = (image_stats, ocr, yolo, color, boxes, compose)
    measured = {name: type for module in modules for name, type in module.COLUMNS.items()}
    columns = sidecar_schema(TARGETS | measured)
    return pa.schema([pa.field("dataset", pa.string()), *columns, pa.field("filename", pa.string())])


def with_task_columns(query: str, columns: Iterable[str]) -> str:
    """`query`, members of any tasks with these columns, with `exact` and `level` as each member's task defines them.

    A member's task is the beginning of its group's key. NULL where a column that they read is in no shard of the lake.
    """
    names = set(columns)
    kinds = {name: kind for name, kind in TASKS.items() if kind.reads() <= names}

    def by_task(expressions: dict[str, str], type: str) -> str:
        cases = " ".join(f"WHEN {quote(name)} THEN ({sql})::{type}" for name, sql in expressions.items())
        return f"CASE regexp_extract(group_key, '^(.*)-[0-9]+$', 1) {cases} END" if cases else f"NULL::{type}"

    exact = by_task({name: kind.exact for name, kind in kinds.items()}, "BOOLEAN")
    level = by_task({name: kind.level for name, kind in kinds.items()}, "INTEGER")
    added = {name: sql for name, sql in (("exact", exact), ("level", level)) if name not in names}
    return (
        f"SELECT *, {', '.join(f'{sql} AS {name}' for name, sql in added.items())} FROM ({query})" if added else query
    )


def _shards_view(con: duckdb.DuckDBPyConnection, files: Files, gathered: Gathered | None) -> None:
    footer = "(SELECT ''::VARCHAR AS file_name, ''::BLOB AS key, ''::BLOB AS value WHERE false)"
    if gathered:
        footer = gathered.footers
    elif files.found(SHARDS):
        footer = f"parquet_kv_metadata({listed(files.patterns(SHARDS))})"
    facts = ("tar_bytes", "tar_sha256", "fingerprint")
    values = ", ".join(f"max(decode(value)) FILTER (decode(key) = '{fact}') AS {fact}" for fact in facts)
    con.execute(f"""
        CREATE OR REPLACE VIEW footers AS
        SELECT {DATASET_OF.format("file_name")} AS dataset, file_name, {values}
        FROM {footer} WHERE decode(key) IN {facts} GROUP BY file_name""")
    con.execute(f"""
        CREATE OR REPLACE VIEW shards AS
        SELECT m.dataset, m.shard, m.groups, m.members, m.failed,
            f.tar_bytes::BIGINT AS tar_bytes, f.tar_sha256, f.fingerprint, m.filename
        FROM (SELECT dataset, shard, filename, count(DISTINCT group_key) AS groups, count(*) AS members,
                     count(*) FILTER (status <> '{OK}') AS failed
              FROM members GROUP BY ALL) m
        LEFT JOIN footers f ON m.filename = f.file_name""")


def _datasets_view(con: duckdb.DuckDBPyConnection, files: Files) -> None:
    """A row a dataset.json; where it is damaged, with nothing but the dataset's name."""
    source = "(SELECT ''::VARCHAR AS filename, ''::BLOB AS content WHERE false)"
    if files.found("dataset.json"):
        source = f"read_blob({listed(files.patterns('dataset.json'))})"
    values = [f"j->>'$.{name}' AS {name}" for name in MANIFEST]
    values += [f"json_extract(j, '$.{name}') AS {name}" for name in MANIFEST_JSON]
    con.execute(f"""
        CREATE OR REPLACE VIEW datasets AS
        SELECT dataset, {", ".join(values)}
        FROM (SELECT {DATASET_OF.format("filename")} AS dataset,
                     try_cast(TRY(decode(content)) AS JSON) AS j FROM {source})""")


def _columns(con: duckdb.DuckDBPyConnection, query: str) -> dict[str, str]:
    """{column of a query: its type}"""
    return {row[0]: row[1] for row in con.execute(f"DESCRIBE {query}").fetchall()}


def columns_of(con: duckdb.DuckDBPyConnection, query: str) -> dict[str, str]:
    """{column of a query: its type}. Raises UsageError where a sidecar cannot be read."""
    try:
        return _columns(con, query)
    except duckdb.Error as error:
        raise UsageError(f"lake: cannot read the sidecars: {locked.one_line(error)}; {REPAIR}") from None

"""The views of the catalog, over the files of a lake; see catalog.py for what they show.

drawn_members   the sidecars dataset=*/shard-*.parquet, joined with dataset=*/measures/<evaluator>@<version>/
members         drawn_members with the task's `exact` and `level`; `groups` and `shards` follow it
"""

from __future__ import annotations

import dataclasses
import glob
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import duckdb
import fsspec

from gpo_data.errors import UsageError
from gpo_data.lake import rewards
from gpo_data.lake.advantage import DEAD_SQL
from gpo_data.tasks import TASKS

# Of an empty lake; a lake with shards has the columns that its sidecars have.
EMPTY = {
    "group_key": "VARCHAR",
    "prompt_id": "VARCHAR",
    "prompt": "VARCHAR",
    "target": "VARCHAR",
    "target_class": "VARCHAR",
    "target_count": "INTEGER",
    "color": "VARCHAR",
    "member": "INTEGER",
    "seed": "BIGINT",
    "ocr_text": "VARCHAR",
    "ocr_confidence": "DOUBLE",
    "n_detected": "INTEGER",
    "entropy": "DOUBLE",
    "edge_density": "DOUBLE",
    "dark_fraction": "DOUBLE",
    "reward": "DOUBLE",
    "status": "VARCHAR",
    "tar": "VARCHAR",
    "offset": "BIGINT",
    "size": "BIGINT",
    "crc32": "BIGINT",
    "filename": "VARCHAR",
}
NUMBERS = (
    "BOOLEAN",
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "UHUGEINT",
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
)

GROUPS = f"""
    SELECT * EXCLUDE (spread), CASE WHEN dead THEN 0.0::DOUBLE ELSE spread END AS std
    FROM (SELECT *, {DEAD_SQL} AS dead
          FROM (SELECT dataset, group_key, any_value(prompt) AS prompt,
                       count(*) FILTER (status = 'ok') AS n,
                       count(*) FILTER (status <> 'ok') AS failed,
                       avg(reward) FILTER (status = 'ok') AS mean,
                       stddev_pop(reward) FILTER (status = 'ok') AS spread,
                       min(reward) FILTER (status = 'ok') AS min,
                       max(reward) FILTER (status = 'ok') AS max,
                       max(reward) FILTER (status = 'ok') AS best_of_n,
                       arg_max(member, reward) FILTER (status = 'ok') AS best_member
                FROM members GROUP BY dataset, group_key))"""

SHARDS = "shard-*.parquet"


@dataclass(frozen=True)
class Lake:
    """The folders that the views read, as fsspec (`folder`) and as DuckDB (`prefix`) name them."""

    files: fsspec.AbstractFileSystem
    folder: str
    prefix: str
    datasets: str = "dataset=*"

    def found(self, name: str) -> list[str]:
        paths: list[str] = self.files.glob(f"{glob.escape(self.folder)}/{self.datasets}/{name}")
        return paths

    def pattern(self, name: str) -> str:
        return f"{glob.escape(self.prefix)}/{self.datasets}/{name}"

    @cached_property
    def has_shards(self) -> bool:
        return bool(self.found(SHARDS))


def create(con: duckdb.DuckDBPyConnection, lake: str, dataset: str | None = None) -> None:
    """Make the views on a connection; arguments as of `catalog.connect`. Raises UsageError."""
    files = _open(con, lake)
    if dataset is not None:
        one = dataclasses.replace(files, datasets=f"dataset={glob.escape(dataset)}")
        files = one if one.has_shards else files
    _stored_view(con, files)
    con.execute(f"CREATE VIEW members AS {with_task_columns(con, 'SELECT * FROM drawn_members')}")
    con.execute(f"CREATE VIEW groups AS {GROUPS}")
    _shards_view(con, files)
    _datasets_view(con, files)


def _stored_view(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    shard = "parse_filename(filename, true, 'both_slash') AS shard"
    if not lake.has_shards:
        columns = ", ".join(f"NULL::{kind} AS {name}" for name, kind in ({"dataset": "VARCHAR"} | EMPTY).items())
        con.execute(f"CREATE VIEW drawn_members AS SELECT *, {shard} FROM (SELECT {columns}) WHERE false")
        return
    read = _read_parquet(lake, SHARDS)
    names = columns_of(con, f"SELECT * FROM {read}")
    selected, joins = {name: f"s.{identifier(name)}" for name in names}, ""
    found = {path.rstrip("/").split("/")[-2] for path in lake.found(f"measures/*@*/{SHARDS}")}
    for i, measure in enumerate(sorted(found, key=_version_order)):
        source = _read_parquet(lake, f"measures/{glob.escape(measure)}/{SHARDS}")
        joins += f"\nLEFT JOIN {source} m{i} USING (dataset, group_key, member)"
        for name, kind in columns_of(con, f"SELECT * FROM {source}").items():
            if name in ("dataset", "group_key", "member", "filename"):
                continue
            new, old = f"m{i}.{identifier(name)}", selected.get(name)
            if old is not None and name in names and kind != names[name] and not {kind, names[name]} <= set(NUMBERS):
                name = f"{name}__{measure}"  # another kind of value cannot take the old one's place
                old = None
            selected[name] = f"coalesce({new}, {old})" if old else new
            names.setdefault(name, kind)
    order = ["dataset", *(n for n in selected if n not in ("dataset", "filename")), "filename"]
    columns = ", ".join(f"{selected[name]} AS {identifier(name)}" for name in order)
    con.execute(f"CREATE VIEW drawn_members AS SELECT *, {shard} FROM (SELECT {columns} FROM {read} s {joins})")


def with_task_columns(con: duckdb.DuckDBPyConnection, query: str) -> str:
    """`query`, members of any tasks, with `exact` and `level` as each member's task defines them.

    A member's task is the beginning of its group's key. NULL where a column that they read is in no shard of the lake.
    """
    names = set(columns_of(con, query))
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


def _shards_view(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    footer = f"parquet_kv_metadata({quote(lake.pattern(SHARDS))})"
    if not lake.has_shards:
        footer = "(SELECT ''::VARCHAR AS file_name, ''::BLOB AS key, ''::BLOB AS value WHERE false)"
    con.execute(f"""
        CREATE VIEW shards AS
        SELECT m.dataset, m.shard, m.groups, m.members, m.failed,
            f.tar_bytes::BIGINT AS tar_bytes, f.tar_sha256, f.fingerprint, m.filename
        FROM (SELECT dataset, shard, filename, count(DISTINCT group_key) AS groups, count(*) AS members,
                     count(*) FILTER (status <> 'ok') AS failed
              FROM members GROUP BY ALL) m
        LEFT JOIN (SELECT file_name,
                          max(decode(value)) FILTER (decode(key) = 'tar_bytes') AS tar_bytes,
                          max(decode(value)) FILTER (decode(key) = 'tar_sha256') AS tar_sha256,
                          max(decode(value)) FILTER (decode(key) = 'fingerprint') AS fingerprint
                   FROM {footer} WHERE decode(key) IN ('tar_bytes', 'tar_sha256', 'fingerprint')
                   GROUP BY file_name) f
        ON m.filename = f.file_name""")


def _datasets_view(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    kinds = {
        "name": "VARCHAR",
        "fingerprint": "VARCHAR",
        "created": "VARCHAR",
        "fields": "JSON",
        "recipe": "JSON",
        "versions": "JSON",
    }
    if lake.found("dataset.json"):
        columns = ", ".join(f"{name}: '{kind}'" for name, kind in kinds.items())
        source = f"""(SELECT * FROM read_json({quote(lake.pattern("dataset.json"))},
                      columns = {{{columns}}}, hive_partitioning = true, hive_types = {{'dataset': VARCHAR}}))"""
    else:
        columns = ", ".join(f"NULL::{kind} AS {name}" for name, kind in ({"dataset": "VARCHAR"} | kinds).items())
        source = f"(SELECT {columns} WHERE false)"
    con.execute(f"CREATE VIEW datasets AS SELECT dataset, {', '.join(kinds)} FROM {source}")


def _open(con: duckdb.DuckDBPyConnection, lake: str) -> Lake:
    if "://" not in lake:
        con.execute("SET parquet_metadata_cache = true")  # footers are read once; a changed file is noticed by its time
        folder = str(Path(lake).resolve())
        return Lake(fsspec.filesystem("file"), folder, folder)
    lake = lake.rstrip("/")
    try:
        files, folder = fsspec.core.url_to_fs(lake)
    except (ImportError, ValueError) as error:
        raise UsageError(f"lake: {lake}: {error}") from None
    con.register_filesystem(files)
    return Lake(files, folder, f"{urlsplit(lake).scheme}://{folder.lstrip('/')}")


def _read_parquet(lake: Lake, name: str) -> str:
    # `key=value` folders above the lake would become columns too.
    outer = {part.split("=")[0] for part in lake.prefix.split("/") if "=" in part}
    exclude = f" EXCLUDE ({', '.join(map(identifier, sorted(outer)))})" if outer else ""
    return f"""(SELECT *{exclude} FROM read_parquet({quote(lake.pattern(name))}, union_by_name = true,
                hive_partitioning = true, hive_types = {{'dataset': VARCHAR}}, filename = true))"""


def columns_of(con: duckdb.DuckDBPyConnection, query: str) -> dict[str, str]:
    """{column of a query: its type}. Raises UsageError where a sidecar cannot be read."""
    try:
        return {row[0]: row[1] for row in con.execute(f"DESCRIBE {query}").fetchall()}
    except duckdb.Error as error:
        raise UsageError(
            f"lake: cannot read the sidecars: {rewards.one_line(error)}; run `gpo-data verify RECIPE --repair`"
        ) from None


def _version_order(measure: str) -> list[tuple[int, int, str]]:
    """Sorts ocr@2 before ocr@10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", measure)]


def quote(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def identifier(text: str) -> str:
    """A name of SQL."""
    return '"' + text.replace('"', '""') + '"'

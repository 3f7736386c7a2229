"""Which measures of a lake count: dataset=<name>/measures/<evaluator>@<version>/shard-*.parquet.

A file counts while its footer names the shard's present `tar_sha256`: a shard that was drawn again has other pictures.
It adds columns, and cannot replace those that say what and where a member is (PROTECTED).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from contextlib import suppress

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from gpo_data.errors import few
from gpo_data.lake.damaged import can_be_read
from gpo_data.lake.files import SHARDS, Files
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.sidecar import CORE, footer_of, parquet_of, read_rows, wrong_bytes
from gpo_data.lake.sql import listed, read_parquet
from gpo_data.tasks import TARGETS

TAR, MEASURED_AT = "tar_sha256", "measured_at"  # of a footer; the time is ISO 8601, UTC
PROTECTED = {"dataset", *CORE.names, *TARGETS}


def values_digest(table: pa.Table) -> str:
    """Of the rows of a measures file: blake2b with a 16-byte digest, in hex, of their JSON."""
    text = json.dumps(table.to_pylist(), sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def problem_of_measures(path: AnyPath, sidecar: AnyPath) -> str | None:
    """Why a measures file of a shard does not count; None if it does, or if its shard is still to be drawn again.

    Raises RunError where the sidecar is none.
    """
    if not sidecar.exists():
        return None
    again = "`gpo-data verify RECIPE --repair` and `gpo-data measure RECIPE` make it again"
    source = parquet_of(path)
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            table = file.read()
            changed = wrong_bytes(source, table, file.metadata)
    except Exception as error:  # pyarrow raises many kinds on damaged bytes
        return f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}; {again}"
    footer = {k.decode(): v.decode(errors="replace") for k, v in (table.schema.metadata or {}).items()}
    if footer.get("tar_sha256") != footer_of(sidecar).get("tar_sha256"):
        return f"measures another tar than {sidecar.name} has now; {again}"
    if not {"group_key", "member"} <= set(table.column_names):
        return f"lacks group_key or member; {again}"
    if taken := sorted((PROTECTED & set(table.column_names)) - {"group_key", "member"}):
        return f"has the columns {', '.join(taken)}, which a shard has itself; {again}"
    places = [
        [(row["group_key"], row["member"]) for row in rows]
        for rows in (table.select(["group_key", "member"]).to_pylist(), read_rows(sidecar, ["group_key", "member"]))
    ]
    if sorted(places[0], key=str) != sorted(places[1], key=str):
        return f"has other rows than {sidecar.name}; {again}"
    if footer.get("values", values_digest(table)) != values_digest(table):
        return f"its values were changed after they were measured; {again}"
    if changed:
        return f"{changed}; {again}"
    return None


def sources_of(con: duckdb.DuckDBPyConnection, files: Files, whole: bool, footers: str | None = None) -> dict[str, str]:
    """{<evaluator>@<version>: SQL of its rows}, the last measured last; of files that belong to their shard.

    `footers`: SQL of what the sidecars' footers say, where they have been gathered; None opens each.
    """
    found: dict[str, list[str]] = {}
    for path in files.found(f"measures/*@*/{SHARDS}"):
        found.setdefault(path.rstrip("/").split("/")[-2], []).append(path)
    if not found:
        return {}
    ours = {path: footer.get(TAR) for path, footer in _footers(con, files, files.found(SHARDS), footers).items()}
    told = {measure: _footers(con, files, paths) for measure, paths in found.items()}
    sources = {}
    for measure in sorted(found, key=lambda one: (_last_measured(told[one]), _version_order(one))):
        tars = {path: footer.get(TAR) for path, footer in told[measure].items()}
        good = [path for path in found[measure] if tars.get(path) and tars[path] == ours.get(_shard_of(path))]
        good = [path for path in good if not whole or can_be_read(files, path)]
        if stale := [_shard_of(path) for path in found[measure] if path not in good]:
            print(
                f"left out {len(stale)} measures of {measure}, damaged or older than their shards: {few(stale)}; "
                f"`gpo-data measure RECIPE` makes them again",
                file=sys.stderr,
            )
        if good:
            sources[measure] = read_parquet(files, files.exact(good))
    return sources


def _footers(
    con: duckdb.DuckDBPyConnection, files: Files, paths: list[str], footers: str | None = None
) -> dict[str, dict[str, str]]:
    """{path: what its footer says of the tar and the time}; without those that cannot be read."""
    by_name = dict(zip(files.exact(paths), paths, strict=True))
    told: dict[str, dict[str, str]] = {}

    def read(source: str) -> None:
        rows = con.execute(
            f"SELECT file_name, decode(key), decode(value) FROM {source} WHERE decode(key) IN {(TAR, MEASURED_AT)}"
        ).fetchall()
        for name, key, value in rows:
            told.setdefault(name.split("dataset=")[-1], {})[key] = value

    try:
        read(footers or f"parquet_kv_metadata({listed(list(by_name))})")
    except duckdb.Error:
        for pattern in by_name:
            with suppress(duckdb.Error):  # damaged
                read(f"parquet_kv_metadata({listed([pattern])})")
    return {path: told[end] for path in paths if (end := path.split("dataset=")[-1]) in told}


def _last_measured(footers: dict[str, dict[str, str]]) -> str:
    """The time of the newest of the files; "" where none has one, which 0.1 did not write."""
    return max((footer.get(MEASURED_AT, "") for footer in footers.values()), default="")


def _shard_of(measure_path: str) -> str:
    folder, _, rest = measure_path.rpartition("/measures/")
    return f"{folder}/{rest.split('/')[-1]}"


def _version_order(measure: str) -> list[tuple[int, int, str]]:
    """Sorts ocr@2 before ocr@10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", measure)]

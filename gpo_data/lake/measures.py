"""Which measures of a lake count: dataset=<name>/measures/<evaluator>@<version>/shard-*.parquet.

A file counts while its footer names the shard's present `tar_sha256`: a shard that was drawn again has other pictures.
"""

from __future__ import annotations

import re
import sys

import duckdb

from gpo_data.errors import few
from gpo_data.lake.files import SHARDS, Files, can_be_read
from gpo_data.lake.sql import listed, read_parquet


def sources_of(con: duckdb.DuckDBPyConnection, files: Files, whole: bool) -> dict[str, str]:
    """{<evaluator>@<version>: SQL of its rows}, the oldest version first; of files that belong to their shard."""
    found: dict[str, list[str]] = {}
    for path in files.found(f"measures/*@*/{SHARDS}"):
        found.setdefault(path.rstrip("/").split("/")[-2], []).append(path)
    if not found:
        return {}
    ours = _hashes(con, files, files.found(SHARDS))
    sources = {}
    for measure in sorted(found, key=_version_order):
        hashes = _hashes(con, files, found[measure])
        good = [path for path in found[measure] if hashes.get(path) and hashes[path] == ours.get(_shard_of(path))]
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


def _hashes(con: duckdb.DuckDBPyConnection, files: Files, paths: list[str]) -> dict[str, str]:
    """{path: the tar_sha256 of its footer}; without those that cannot be read."""
    by_name = dict(zip(files.exact(paths), paths, strict=True))

    def read(patterns: list[str]) -> dict[str, str]:
        rows = con.execute(
            f"""SELECT file_name, decode(value) FROM parquet_kv_metadata({listed(patterns)})
                WHERE decode(key) = 'tar_sha256'"""
        ).fetchall()
        return dict(rows)

    try:
        told = read(list(by_name))
    except duckdb.Error:
        told = {}
        for pattern in by_name:
            try:
                told |= read([pattern])
            except duckdb.Error:
                continue  # damaged
    end = {name.split("dataset=")[-1]: sha for name, sha in told.items()}
    return {path: end[path.split("dataset=")[-1]] for path in paths if path.split("dataset=")[-1] in end}


def _shard_of(measure_path: str) -> str:
    folder, _, rest = measure_path.rpartition("/measures/")
    return f"{folder}/{rest.split('/')[-1]}"


def _version_order(measure: str) -> list[tuple[int, int, str]]:
    """Sorts ocr@2 before ocr@10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", measure)]

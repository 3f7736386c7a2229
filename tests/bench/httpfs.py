"""DuckDB's own reader of object stores (its extension httpfs) beside ours (lake/mirror.py): seconds and requests.

    python -m tests.bench.httpfs [seconds of latency] [sidecars]

One question to a lake of so many sidecars of 2,048 members in moto's server, behind a proxy that waits before each
request. Offline the extension comes from a package, which is there for some versions of DuckDB alone:

    pip install --target DIR --no-deps duckdb==1.5.5 duckdb-extensions duckdb-extension-httpfs
    PYTHONPATH=DIR python -m tests.bench.httpfs
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import duckdb

from gpo_data.lake.mirror import Mirror
from gpo_data.lake.remote import place
from tests.bench.catalog import write_lake
from tests.parts.s3 import Proxy, connected, make_bucket, server

QUESTION = "SELECT count(*), avg(reward) FROM read_parquet('s3://bench/lake/dataset=*/shard-*.parquet')"


def by_httpfs(proxy: Proxy) -> Callable[[], duckdb.DuckDBPyConnection]:
    from duckdb_extensions import import_extension

    import_extension("httpfs")

    def connect() -> duckdb.DuckDBPyConnection:
        con = duckdb.connect()
        con.execute("LOAD httpfs")
        con.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID 'testing', SECRET 'testing', ENDPOINT '{urlsplit(proxy.url).netloc}', "
            f"USE_SSL false, URL_STYLE 'path')"
        )
        return con

    return connect


def by_mirror() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.register_filesystem(Mirror("s3://bench/lake"))
    return con


def main() -> None:
    latency = float(sys.argv[1]) if len(sys.argv) > 1 else 0.1
    sidecars = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    with (
        server() as s3,
        Proxy(s3.port) as proxy,
        tempfile.TemporaryDirectory() as folder,
        connected(proxy.url, Path(folder) / "scratch"),
    ):
        make_bucket(s3.url, "bench")
        here = Path(folder) / "lake"
        write_lake(here, 2048 * sidecars, 64)
        for path in here.rglob("*.parquet"):
            (place("s3://bench/lake") / path.parent.name / path.name).write_bytes(path.read_bytes())
        proxy.latency = latency
        ways: list[tuple[str, Callable[[], duckdb.DuckDBPyConnection]]] = [
            ("ours, the first time", by_mirror),
            ("ours, again", by_mirror),
        ]
        try:
            ways.append(("httpfs", by_httpfs(proxy)))
            ways.append(("httpfs, again", ways[-1][1]))
        except Exception as error:  # none for this version of DuckDB, or no package
            print(f"httpfs: not here: {error}")
        for name, connect in ways:
            before, started = len(proxy.seen), time.monotonic()
            con = connect()
            answer = con.sql(QUESTION).fetchall()
            seconds = time.monotonic() - started
            con.close()
            print(
                f"DuckDB {duckdb.__version__}, {name}: {seconds:.2f} s, {len(proxy.seen) - before} requests, {answer}"
            )


if __name__ == "__main__":
    main()

"""A lake on an object store: a real S3 server on loopback, and a proxy before it that fails and cuts."""

from __future__ import annotations

import socket
from pathlib import Path

import fsspec
import pytest
from rich.console import Console

from gpo_data.errors import StoreError, UsageError
from gpo_data.lake import silence
from gpo_data.lake.remote import RemotePath, place
from gpo_data.lake.store_errors import explained
from tests.parts.bucket import bucket as bucket
from tests.parts.bucket import copied, objects, on_disk, recipe_of
from tests.parts.bucket import proxy as proxy
from tests.parts.bucket import s3 as s3
from tests.parts.s3 import connected
from tests.parts.serving import free_port

QUIET = Console(quiet=True)


def test_places(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("~/lake") == tmp_path / "lake"
    assert place("file:///srv/a%20lake") == Path("/srv/a lake") and place("file://localhost/srv") == Path("/srv")
    assert place("lake") == Path("lake") and place("s3://b/lake/") == RemotePath("s3://b/lake")
    for lake, told in (
        ("file://srv/lake", "three slashes"),
        ("https://host/lake", "does not list"),
        ("http://h/l", "list"),
        ("s3:/b/lake", r"did you mean s3://b/lake\? A folder of that name is \./s3:/b/lake"),
        ("hf:datasets/org/name", "did you mean hf://datasets/org/name"),
        ("file:/srv/lake", "did you mean file:///srv/lake"),
    ):
        with pytest.raises(UsageError, match=told):
            place(lake)
    assert place("./s3:/b/lake") == Path("s3:/b/lake") and place("a:/lake") == Path("a:/lake")
    with pytest.raises(UsageError, match="nosuch://"):
        RemotePath("nosuch://b/lake").is_file()


def test_a_listing_that_google_has_not_is_a_bucket_that_is_not_there():
    found = explained(FileNotFoundError("b/nowhere/o"), "gs://nowhere/lake")  # what gcsfs 2026.10.1 raises
    assert isinstance(found, UsageError) and "no bucket gs://nowhere" in str(found)
    there = FileNotFoundError("b/bucket/o/lake%2Fdataset.json")
    assert explained(there, "gs://bucket/lake") is there


def test_a_store_that_does_not_say_what_it_refuses(proxy, bucket):
    """MinIO and others leave out of their 412 that it is of `If-None-Match`."""
    path = place(bucket) / "one.tar"
    path.write_bytes(b"first")
    proxy.fault = lambda request: "taken" if request.method == "PUT" else None
    assert path.create(b"first") and not path.create(b"other") and path.read_bytes() == b"first"
    with pytest.raises(StoreError, match="does not answer as it should"):  # refused, and nothing is there
        (place(bucket) / "two.tar").create(b"first")


def test_a_lake_in_a_bucket(proxy, bucket, recipe_file, drawn_lake, tmp_path):
    """Draw, resume, a second writer, sql, and groups to train on."""
    from gpo_data.generation.generate import draw
    from gpo_data.lake import catalog
    from gpo_data.lake.lake import Lake

    recipe = recipe_of(recipe_file, bucket)
    draw(recipe, QUIET)
    assert objects(bucket) == on_disk(drawn_lake)
    puts = proxy.count("PUT")
    draw(recipe, QUIET)
    assert proxy.count("PUT") == puts == 7  # three shards and dataset.json
    # A writer on another machine, with a scratch of its own, who began when nothing was committed.
    late = next(iter((place(bucket) / "dataset=small").glob("shard-000001.parquet")))
    content = late.read_bytes()
    late.unlink()
    draw(recipe, QUIET)
    assert late.read_bytes() == content and objects(bucket) == on_disk(drawn_lake)
    table = catalog.ask(bucket, "SELECT count(*) AS n, count(DISTINCT group_key) AS g FROM members")
    assert table.to_pylist() == [{"n": 24, "g": 6}]
    assert Lake(bucket).datasets() == ["small"]
    found = Lake(bucket)["small"].groups()
    assert [g.key for g in found.ahead(range(len(found)))] == [found[i].key for i in range(len(found))]
    assert not [path for path in (tmp_path / "scratch" / "stage").rglob("*.sample")]


@pytest.mark.slow
def test_pages_in_a_bucket(proxy, bucket, recipe_file, drawn_lake, capsys):
    from gpo_data.cli import main

    copied(drawn_lake, bucket)
    for verb in ("verify", "audit", "show"):
        assert main([verb, str(recipe_file), "--lake", bucket]) == 0, capsys.readouterr()
    assert (place(bucket) / "dataset=small" / "audit.html").read_bytes().startswith(b"<!")
    assert (place(bucket) / "dataset=small" / "show.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_wrong_is_one_line(proxy, bucket, recipe_file, drawn_lake, tmp_path, capsys):
    from gpo_data.cli import main

    def said(lake: str, code: int, verb: str = "sql", *more: str) -> str:
        query = ["select 1"] if verb == "sql" else []
        assert main([verb, str(recipe_file), *query, "--lake", lake, *more]) == code
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1 and told[0].startswith("error: "), told
        return told[0]

    assert "no bucket s3://nowhere" in said("s3://nowhere/lake", 2)
    assert "no bucket s3://nowhere" in said("s3://nowhere/lake", 2, "shards")
    assert "gpo-data shards RECIPE" in said(bucket, 2)  # nothing in it
    assert "does not list" in said("http://127.0.0.1:1/lake", 2)
    copied(drawn_lake, bucket)
    for fault, code, told in (
        ("expired", 1, "credentials have expired"),
        ("denied", 2, "must not be read"),
        ("skewed", 2, "clocks"),
    ):
        proxy.fault = lambda request, fault=fault: fault
        assert told in said(bucket, code) and told in said(bucket, code, "verify")
    proxy.fault = lambda request: "denied" if request.method == "PUT" else None
    (place(bucket) / "dataset=small" / "shard-000001.parquet").unlink()
    assert "must not be written" in said(bucket, 2, "shards")


def test_a_store_that_is_not_there_is_one_line(recipe_file, tmp_path, monkeypatch, capsys):
    from gpo_data.cli import main

    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")  # of five, which take ten seconds
    for host in (f"127.0.0.1:{free_port()}", "nowhere.invalid"):
        with connected(f"http://{host}", tmp_path / "scratch"):
            for verb in (["sql", str(recipe_file), "select 1"], ["shards", str(recipe_file)]):
                assert main([*verb, "--lake", "s3://bucket/lake"]) == 1
                told = capsys.readouterr().err.strip().splitlines()
                assert len(told) == 1 and f'Could not connect to the endpoint URL: "http://{host}' in told[0], told


@pytest.mark.slow
def test_a_store_that_never_answers_is_given_up_on(tmp_path, monkeypatch):
    """It takes connections, and nothing else. A client that writes would wait for its `100 Continue` for ever."""
    pytest.importorskip("s3fs")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 1}})
    monkeypatch.setattr(silence, "FIRST", 2.0)
    monkeypatch.setattr(silence, "LATER", 2.0)
    deaf = socket.create_server(("127.0.0.1", 0))
    with deaf, connected(f"http://127.0.0.1:{deaf.getsockname()[1]}", tmp_path / "scratch"):
        there = place("s3://bucket/lake")
        for ask in (there.is_dir, there.read_bytes, lambda: list(there.glob("*"))):
            with pytest.raises(StoreError, match="said nothing at all"):
                ask()
        with pytest.raises(StoreError, match="7 bytes were not written in 2 s"):
            there.create(b"content")


@pytest.mark.slow
def test_a_store_that_answers_every_second_time_is_not(proxy, bucket, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 1}})
    (place(bucket) / "one").write_bytes(b"content")
    monkeypatch.setattr(silence, "FIRST", 0.5)
    monkeypatch.setattr(silence, "LATER", 0.5)
    proxy.fault = lambda request: 2.0 if len(proxy.seen) % 2 else None
    for _ in range(3):
        proxy.seen.clear()
        assert (place(bucket) / "one").read_range(0, 7) == b"content"
        assert proxy.count("GET") == 2


@pytest.mark.slow
def test_an_outage_is_not_damage(proxy, bucket, drawn_lake, monkeypatch):
    from gpo_data.lake.verify import verify

    copied(drawn_lake, bucket)
    folder = place(bucket) / "dataset=small"
    assert not verify(folder).problems
    monkeypatch.setattr("gpo_data.lake.remote.open_store", quick_store)
    proxy.fault = lambda request: "500" if request.method == "GET" and "shard-000001.tar" in request.path else None
    with pytest.raises(StoreError, match="does not answer"):
        verify(folder)


def quick_store(url: str):
    """The store with one try a request: what five tries give up on after half a minute."""
    import s3fs

    store = s3fs.S3FileSystem(use_listings_cache=False, config_kwargs={"retries": {"max_attempts": 0}})
    store.retries = 1
    return store, store._strip_protocol(url)


@pytest.mark.slow
def test_measure_and_repair(proxy, bucket, recipe_file, drawn_lake, tmp_path, capsys):
    from gpo_data.cli import main

    copied(drawn_lake, bucket)
    at = [str(recipe_file), "--lake", bucket]
    assert main(["measure", *at, "--evaluator", "color"]) == 0
    before = len(proxy.seen)
    assert main(["measure", *at, "--evaluator", "color"]) == 0 and "skipped 3 of 3" in capsys.readouterr().out
    again = [one.path for one in proxy.seen[before:] if one.method != "HEAD" and "shard-" in one.path]
    assert len(again) == len(set(again)) == 3, again  # the measures; sidecars that did not change are here
    assert main(["sql", *at, "select count(color_seen) as n from members", "--format", "csv"]) == 0
    assert capsys.readouterr().out.endswith("n\n24\n")
    folder = place(bucket) / "dataset=small"
    damaged = folder / "shard-000002.tar"
    damaged.write_bytes(damaged.read_bytes()[:-2048] + bytes(2048))
    (folder / "shard-000000.parquet").unlink()
    assert main(["verify", *at]) == 1
    assert main(["verify", *at, "--repair"]) == 0
    assert (folder / ".quarantine" / "shard-000002.tar").is_file() and not damaged.is_file()
    assert main(["shards", *at]) == 0 and main(["measure", *at, "--evaluator", "color"]) == 0
    assert main(["verify", *at]) == 0, capsys.readouterr()
    assert {n: c for n, c in objects(bucket).items() if "measures" not in n} == on_disk(drawn_lake)

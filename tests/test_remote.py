"""A lake on an object store: a real S3 server on loopback, and a proxy before it that fails, cuts, and sees kills."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gpo_data.errors import RunError, StoreError, UsageError
from gpo_data.lake.cache import Cache, bytes_of
from gpo_data.lake.remote import RemotePath, place
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.lake.store_errors import explained
from tests.conftest import TRAIN
from tests.parts.disk import needs_mount, small_disk
from tests.parts.s3 import Proxy, Request, Server, connected, environment, make_bucket, server

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with server() as running:
        yield running


@pytest.fixture
def proxy(s3: Server, tmp_path: Path) -> Iterator[Proxy]:
    """Before the server; this process talks to it."""
    with Proxy(s3.port) as running, connected(running.url, tmp_path / "scratch"):
        yield running


@pytest.fixture
def bucket(s3: Server, tmp_path: Path) -> str:
    name = f"b-{abs(hash(tmp_path)):x}"
    make_bucket(s3.url, name)
    return f"s3://{name}/some/lake"


def recipe_of(recipe_file: Path, lake: str):
    from gpo_data import recipe

    return recipe.load(recipe_file, ["--lake", lake])


def objects(lake: str) -> dict[str, bytes]:
    """What lies in the dataset, but for the pages and the manifest (which has a time in it)."""
    folder = place(lake) / "dataset=small"
    return {one.name: one.read_bytes() for one in folder.glob("shard-*")}


def on_disk(drawn_lake: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (drawn_lake / "dataset=small").glob("shard-*")}


def copied(drawn_lake: Path, lake: str) -> None:
    """A lake that was drawn on a disk, in the bucket."""
    for path in (drawn_lake / "dataset=small").glob("[!.]*.*"):
        (place(lake) / "dataset=small" / path.name).write_bytes(path.read_bytes())


def test_places(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("~/lake") == tmp_path / "lake"
    assert place("file:///srv/a%20lake") == Path("/srv/a lake") and place("file://localhost/srv") == Path("/srv")
    assert place("lake") == Path("lake") and place("s3://b/lake/") == RemotePath("s3://b/lake")
    for lake, told in (
        ("file://srv/lake", "three slashes"),
        ("https://host/lake", "does not list"),
        ("http://h/l", "list"),
    ):
        with pytest.raises(UsageError, match=told):
            place(lake)
    with pytest.raises(UsageError, match="nosuch://"):
        RemotePath("nosuch://b/lake").is_file()


def test_a_listing_that_google_has_not_is_a_bucket_that_is_not_there():
    found = explained(FileNotFoundError("b/nowhere/o"), "gs://nowhere/lake")  # what gcsfs 2026.10.1 raises
    assert isinstance(found, UsageError) and "no bucket gs://nowhere" in str(found)
    there = FileNotFoundError("b/bucket/o/lake%2Fdataset.json")
    assert explained(there, "gs://bucket/lake") is there


def test_the_cache_is_bounded_and_checked(tmp_path):
    cache, asked = Cache(tmp_path / "c", 10_000), []
    for key in "abcabc":
        cache.get(key, lambda key=key: asked.append(key) or key.encode() * 100)
    assert asked == ["a", "b", "c"]
    for i in range(200):
        cache.put(f"key {i}", bytes(100))
        assert sum(path.stat().st_size for path in (tmp_path / "c").iterdir()) <= 10_000
    assert cache.find("key 199") == bytes(100) and cache.find("key 0") is None
    newest = max((tmp_path / "c").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    assert cache.find("key 199") is None
    assert bytes_of("train.cache", "1.5 GB") == 1_500_000_000
    with pytest.raises(UsageError, match=r"train.cache: expected a size"):
        bytes_of("train.cache", "much")


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
def test_another_machine_was_first(proxy, bucket, recipe_file, drawn_lake, tmp_path, monkeypatch):
    """Its tar, in another arithmetic, was there before ours: its groups are committed, once."""
    from gpo_data.generation.generate import draw
    from gpo_data.lake.shard import commit
    from gpo_data.lake.verify import verify

    recipe = recipe_of(recipe_file, bucket)
    tar = place(bucket) / "dataset=small" / "shard-000001.tar"
    theirs = tampered((drawn_lake / "dataset=small" / "shard-000001.tar").read_bytes())

    def slow(folder, shard_id, *rest):
        if shard_id == 1:
            tar.write_bytes(theirs)
        return commit(folder, shard_id, *rest)

    monkeypatch.setattr("gpo_data.generation.worker.commit", slow)
    draw(recipe, QUIET)
    assert tar.read_bytes() == theirs and not verify(tar.parent).problems
    # What is no tar of these groups is not taken for one.
    monkeypatch.setattr("gpo_data.generation.worker.commit", commit)
    tar.with_suffix(".parquet").unlink()
    tar.write_bytes((drawn_lake / "dataset=small" / "shard-000002.tar").read_bytes())
    with pytest.raises(RunError, match="expected the shard's groups there"):
        draw(recipe, QUIET)


def tampered(tar: bytes) -> bytes:
    """The same groups with other last bits in their latents, as another processor would have drawn them."""
    import io
    import tarfile

    from gpo_data.group import from_sample, to_sample
    from gpo_data.lake.stage import END, pack_sample

    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for entry in archive:
            key, _, name = entry.name.partition(".")
            samples.setdefault(key, {})[name] = archive.extractfile(entry).read()
    blocks = []
    for key, sample in samples.items():
        group = from_sample(sample)
        blocks.append(pack_sample(key, to_sample(dataclasses.replace(group, latents=group.latents * (1 + 1e-6)))))
    return b"".join([*blocks, END])


def test_a_dataset_does_not_begin_over_old_tars(proxy, bucket, recipe_file):
    from gpo_data.generation.generate import draw

    (place(bucket) / "dataset=small" / "shard-000009.tar").write_bytes(b"old")
    with pytest.raises(UsageError, match="of a dataset that was here before"):
        draw(recipe_of(recipe_file, bucket), QUIET)


@pytest.mark.slow
def test_requests_for_one_dataset_do_not_grow_with_the_others(proxy, bucket, drawn_lake, tmp_path):
    from gpo_data.lake import catalog

    copied(drawn_lake, bucket)

    def requests() -> int:
        before = len(proxy.seen)
        take_snapshot(catalog.connect(bucket, "small"), "small")
        return len(proxy.seen) - before

    requests()
    one = requests()  # what has not changed is on this machine
    for i in range(20):
        for path in (drawn_lake / "dataset=small").glob("[!.]*.*"):
            (place(bucket) / f"dataset=other{i}" / path.name).write_bytes(path.read_bytes())
    assert requests() == one <= 2


@pytest.mark.slow
def test_measure_and_repair(proxy, bucket, recipe_file, drawn_lake, tmp_path, capsys):
    from gpo_data.cli import main

    copied(drawn_lake, bucket)
    at = [str(recipe_file), "--lake", bucket]
    assert main(["measure", *at, "--evaluator", "color"]) == 0
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


def life(recipe_file: str, lake: str, env: dict[str, str]) -> None:
    import torch

    from gpo_data.generation.generate import draw

    os.environ.update(env)
    torch.set_num_threads(1)
    draw(recipe_of(Path(recipe_file), lake), QUIET)


def draw_at_once(recipe_file: Path, lake: str, environments: list[dict[str, str]]) -> None:
    """As many machines draw the same dataset; each comes to its end, and nothing is wrong with what lies there."""
    from gpo_data.lake.verify import verify
    from tests.test_crash import lives

    context = lives()
    drawing = [context.Process(target=life, args=(str(recipe_file), lake, env)) for env in environments]
    for process in drawing:
        process.start()
    for process in drawing:
        process.join(120)
    assert {process.exitcode for process in drawing} == {0}
    assert not verify(place(lake) / "dataset=small").problems


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kill", range(1, 8))
def test_killed_at_every_put(s3, bucket, recipe_file, drawn_lake, tmp_path, kill, done):
    """Before the PUT and after it; who resumes has the same scratch, or is another machine: 0 lost, 0 doubled."""
    from gpo_data.lake.verify import verify
    from tests.test_crash import lives

    with Proxy(s3.port) as proxy, connected(proxy.url, tmp_path / "here"):
        env = environment(proxy.url, tmp_path / "scratch")
        process = lives().Process(target=life, args=(str(recipe_file), bucket, env))

        def strike(request: Request) -> str | None:
            if request.method != "PUT" or proxy.count("PUT") != kill:
                return None
            os.kill(process.pid or 0, signal.SIGKILL)
            return "gone"

        if done:
            proxy.after = strike
        else:
            proxy.fault = strike
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        proxy.after = proxy.fault = lambda request: None
        if kill % 2:
            env["GPO_SCRATCH"] = str(tmp_path / "another-machine")
        life(str(recipe_file), bucket, env)
        assert objects(bucket) == on_disk(drawn_lake)
        assert not verify(place(bucket) / "dataset=small").problems


@pytest.mark.slow
def test_two_machines_draw_at_once(s3, bucket, recipe_file, drawn_lake, tmp_path):
    with Proxy(s3.port) as proxy, connected(proxy.url, tmp_path / "here"):
        draw_at_once(recipe_file, bucket, [environment(proxy.url, tmp_path / f"scratch-{i}") for i in range(2)])
        assert objects(bucket) == on_disk(drawn_lake)


@pytest.mark.slow
def test_resuming_lists_once_and_fetches_each_sidecar_once(proxy, bucket, recipe_file, drawn_lake):
    from gpo_data.generation.generate import draw

    copied(drawn_lake, bucket)
    draw(recipe_of(recipe_file, bucket), QUIET)
    proxy.seen.clear()
    draw(recipe_of(recipe_file, bucket), QUIET)
    assert proxy.count("GET", ".parquet") == proxy.count("HEAD", ".parquet") == 0  # each is on this machine
    assert sum("list-type" in one.path for one in proxy.seen) == 1, proxy.seen


@needs_mount
@pytest.mark.slow
def test_a_full_scratch_stops_clearly_and_the_next_run_goes_on(
    proxy, bucket, recipe_file, drawn_lake, tmp_path, monkeypatch, capsys
):
    from gpo_data.cli import main

    with small_disk(disk := tmp_path / "small", "100k") as resize:
        monkeypatch.setenv("GPO_SCRATCH", str(disk))
        assert main(["shards", str(recipe_file), "--lake", bucket]) == 1
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1 and "No space left on device" in told[0]
        assert objects(bucket).items() <= on_disk(drawn_lake).items()
        resize("8m")
        assert main(["shards", str(recipe_file), "--lake", bucket]) == 0
        assert objects(bucket) == on_disk(drawn_lake)


@pytest.mark.slow
def test_workers_draw_into_a_bucket(proxy, bucket, recipe_file, drawn_lake, own_ray):
    from gpo_data.cli import main
    from gpo_data.lake.verify import verify

    assert main(["shards", str(recipe_file), "--lake", bucket, "--workers", "2"]) == 0
    assert not verify(place(bucket) / "dataset=small").problems
    ours, theirs = objects(bucket), on_disk(drawn_lake)
    assert {name: ours[name] for name in ours if name.endswith(".tar")} == {
        name: theirs[name] for name in theirs if name.endswith(".tar")
    }
    assert main(["measure", str(recipe_file), "--lake", bucket, "--workers", "2", "--evaluators", "[color]"]) == 0


@pytest.mark.slow
def test_a_store_that_stumbles(proxy, bucket, recipe_file, drawn_lake, tmp_path):
    """Every fifth request fails, is cut in its answer, is done with its answer lost, or comes late."""
    from gpo_data.generation.generate import draw
    from gpo_data.lake.lake import Lake
    from gpo_data.lake.verify import verify

    kinds = ["500", "cut", "lost", 1.0]

    def stumble(request: Request):
        number = len(proxy.seen)
        return kinds[number // 5 % 4] if number % 5 == 0 else None

    proxy.fault = stumble
    draw(recipe_of(recipe_file, bucket), QUIET)
    found = Lake(bucket)["small"].groups()
    assert len(list(found.ahead(range(len(found))))) == len(found) > 0
    assert not verify(place(bucket) / "dataset=small").problems
    proxy.fault = lambda request: None
    assert objects(bucket) == on_disk(drawn_lake)


def training(recipe_file: Path, lake: str, *overrides: str):
    from gpo_data import recipe

    path = recipe_file.with_name("train.yaml")
    path.write_text(recipe_file.read_text() + TRAIN)
    return recipe.load(path, ["--name", "small", "--lake", lake, *overrides])


def weights_of(run) -> dict[str, bytes]:
    found = {file.name: file.read_bytes() for file in sorted(run.policy.rglob("*.safetensors"))}
    assert found
    return found


@pytest.mark.slow
def test_trains_from_a_bucket_as_from_a_disk(proxy, bucket, recipe_file, drawn_lake, tmp_path, monkeypatch):
    from gpo_train.fit import fit

    monkeypatch.chdir(tmp_path)
    copied(drawn_lake, bucket)
    spec = f"{{folder: {tmp_path / 'kept'}, size: 1 GB}}"
    there = fit(training(recipe_file, bucket, "--train.cache", spec), "there", QUIET)
    before = proxy.count("GET", ".tar")
    again = fit(training(recipe_file, bucket, "--train.cache", spec), "again", QUIET)
    assert before > 0 and proxy.count("GET", ".tar") == before  # all of it is kept here
    here = fit(training(recipe_file, str(drawn_lake)), "here", QUIET)
    assert weights_of(there) == weights_of(here) == weights_of(again)


@pytest.mark.slow
def test_online_iterations_in_a_bucket(proxy, bucket, recipe_file, tmp_path, monkeypatch):
    """Drawn, pruned, and the same as on a disk."""
    from gpo_train.fit import fit

    monkeypatch.chdir(tmp_path)
    more = ["--online.iterations", "3", "--online.keep_last", "1", "--online.grid_every", "0"]
    more += ["--sampler.store_unconditional", "true", "--train.caption_dropout", "0.5"]
    digests = []
    for lake in (bucket, str(tmp_path / "lake-here")):
        run = fit(training(recipe_file, lake, *more), "on", QUIET, "online", tmp_path / f"runs-{len(digests)}")
        tars = [sorted(p.name for p in (place(lake) / f"dataset=on-it{i:04d}").glob("shard-*.tar")) for i in range(3)]
        assert [len(names) for names in tars] == [0, 0, 3]
        digests.append(weights_of(run))
        assert json.loads((run.folder / "run.json").read_text())["state"] == "finished"
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_sidecars_are_read_once(proxy, bucket, drawn_lake):
    from gpo_data.lake import catalog

    copied(drawn_lake, bucket)
    con = catalog.connect(bucket)
    before = len(proxy.seen)
    for _ in range(3):
        con.execute("SELECT * FROM groups").fetchall()
    assert len(proxy.seen) == before
    newer = place(bucket) / "dataset=small" / "shard-000000.parquet"
    assert pq.read_table(newer.open()).num_rows == 8

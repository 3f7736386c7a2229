"""Reading from a bucket: requests, the cache, and training."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gpo_data.errors import UsageError
from gpo_data.lake.cache import Cache, bytes_of
from gpo_data.lake.remote import place
from gpo_data.lake.snapshot import take_snapshot
from tests.conftest import TRAIN
from tests.parts.bucket import bucket as bucket
from tests.parts.bucket import copied, objects, on_disk, recipe_of
from tests.parts.bucket import proxy as proxy
from tests.parts.bucket import s3 as s3
from tests.parts.s3 import Request

QUIET = Console(quiet=True)


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


def test_what_is_verified_is_read_once(proxy, bucket, drawn_lake):
    from gpo_data.lake.verify import verify

    copied(drawn_lake, bucket)
    before = len(proxy.seen)
    report = verify(place(bucket) / "dataset=small")
    assert report.groups == 6 and not report.problems
    read: dict[str, int] = {}
    for request in proxy.seen[before:]:
        name = request.path.partition("?")[0].rpartition("/")[2]
        read[name] = read.get(name, 0) + request.sent
    assert {name: size for name, size in read.items() if name.startswith("shard-")} == {
        name: len(content) for name, content in on_disk(drawn_lake).items()
    }


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

"""Drawing into a bucket: killed at every PUT, beside another machine, with a full scratch, by workers."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import tarfile

import pytest
from rich.console import Console

from gpo_data.errors import RunError, UsageError
from gpo_data.lake.remote import place
from tests.parts.bucket import bucket as bucket
from tests.parts.bucket import copied, draw_at_once, life, objects, on_disk, recipe_of
from tests.parts.bucket import proxy as proxy
from tests.parts.bucket import s3 as s3
from tests.parts.disk import needs_mount, small_disk
from tests.parts.lives import lives
from tests.parts.s3 import Proxy, Request, connected, environment

QUIET = Console(quiet=True)


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
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kill", range(1, 8))
def test_killed_at_every_put(s3, bucket, recipe_file, drawn_lake, tmp_path, kill, done):
    """Before the PUT and after it; who resumes has the same scratch, or is another machine: 0 lost, 0 doubled."""
    from gpo_data.lake.verify import verify

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

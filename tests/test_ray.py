"""Drawing by a real Ray: on this machine, and on clusters of two nodes that are also on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gpo_data import cli, recipe
from gpo_data.errors import UsageError
from gpo_data.generation.generate import draw
from gpo_data.lake.locks import held
from gpo_data.lake.verify import verify
from tests.parts.nodes import ENVIRONMENT, Nodes
from tests.parts.nodes import cluster as cluster
from tests.parts.ray import MANY, QUIET, begun, drawn, ended, run, same, workers_of
from tests.parts.ray import bright as bright
from tests.parts.ray import one as one

LOCK = "driver.lock"


def test_two_workers_draw_the_bytes_of_one_process(bright: Path, own_ray: None) -> None:
    left, another = (Path(tempfile.mkdtemp(prefix="gpo-ray-", dir="/tmp")) for _ in range(2))
    (left / LOCK).touch()
    with held(another / LOCK):
        drawn_by_two(bright)
        assert another.exists() and not left.exists()
    shutil.rmtree(another)


def drawn_by_two(bright: Path) -> None:
    settings = ["--sampler.store_unconditional", "true"]  # in the first group of each shard
    settings += ["--group_size", "3", "--groups_per_shard", "4"]  # of which two at a time are a job
    one = draw(recipe.load(bright, ["--name", "one", *settings], trust=True), QUIET)
    two = draw(recipe.load(bright, ["--name", "two", *settings, "--workers", "2"], trust=True), QUIET)
    assert len(drawn(two)) == 4 and drawn(two) == drawn(one)
    assert not verify(two).problems and not list((two / ".stage").glob("*.sample"))


def test_how_many_and_where() -> None:
    words = ["shards", "r.yaml", "--workers", "8", "--ray", "auto", "--limit", "3"]
    assert recipe.split_overrides(words) == (words[2:6], ["shards", "r.yaml", "--limit", "3"])
    assert recipe.load("text-tiny", words[2:6]).ray == recipe.Ray(workers=8, address="auto")
    assert not recipe.Ray().wanted and not recipe.Ray(workers=0, address="auto").wanted
    assert recipe.Ray(workers=2).wanted and recipe.Ray(address="ray://gpu-0:10001").wanted
    with pytest.raises(UsageError, match=r"ray.address: expected auto, HOST:PORT or ray://HOST:PORT, found 'gpus'"):
        recipe.Ray(address="gpus")


def test_where_it_is_drawn_makes_no_other_dataset_and_no_other_run(bright: Path) -> None:
    from gpo_train.run import flat

    plain = recipe.load(bright, trust=True)
    other = recipe.load(bright, ["--workers", "4", "--ocr.actors", "2", "--ocr.num_gpus", "0.5"], trust=True)
    assert plain.fingerprint() == other.fingerprint()
    assert flat(dataclasses.asdict(plain)) == flat(dataclasses.asdict(other))


def test_without_ray_one_line_says_what_to_install(
    bright: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "gpo_data.generation.ray", raising=False)
    assert cli.main(["shards", str(bright), "--trust", "--workers", "2"]) == 2
    assert "Ray is not installed here: pip install 'gpo[ray]'" in capsys.readouterr().err
    assert not Path("lake/dataset=small").exists()


def test_no_cluster_there(bright: Path, own_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards", str(bright), "--trust", "--ray", "127.0.0.1:1"]) == 2
    assert "ray.address: no Ray at 127.0.0.1:1 " in capsys.readouterr().err
    assert cli.main(["shards", str(bright), "--trust", "--workers", "2", "--sampler.device", "cuda:1"]) == 2
    assert "sampler.device" in capsys.readouterr().err


# From here on: minutes.


@pytest.mark.slow
def test_a_node_dies(bright: Path, one: dict[str, bytes], cluster: Callable[..., Nodes]) -> None:
    nodes = cluster(1, 1)
    with begun(bright, *MANY, "--ray", nodes.address) as process:
        nodes.kill_last()  # its worker may live on for some seconds
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "a worker died; another takes its place" in output
    assert same(bright, one)


@pytest.mark.slow
def test_two_workers_share_one_shard(bright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*MANY, "--groups_per_shard", "24"]
    here = drawn(draw(recipe.load(bright, [*settings, "--lake", "plain"], trust=True), QUIET))
    (tmp_path / "judges").mkdir()
    monkeypatch.setitem(ENVIRONMENT, "JUDGES", str(tmp_path / "judges"))
    monkeypatch.setitem(ENVIRONMENT, "JUDGE_SECONDS", "0.5")
    done = run(bright, *settings, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert same(bright, here)
    calls = [path.stat().st_size for path in (tmp_path / "judges").iterdir()]
    assert len(calls) == 2 and min(calls) >= 4, calls  # one of a blank picture, and two jobs of two groups


@pytest.mark.slow
def test_the_driver_dies(bright: Path, one: dict[str, bytes], cluster: Callable[..., Nodes]) -> None:
    nodes = cluster(1, 1)
    with begun(bright, *MANY, "--ray", nodes.address) as process:
        workers = workers_of(nodes.process.pid)
        process.kill()
        assert ended(workers)
    again = run(bright, *MANY, "--ray", nodes.address)
    assert again.returncode == 0 and "resuming" in again.stdout, again.stderr
    assert same(bright, one)


@pytest.mark.slow
def test_a_node_is_slow(bright: Path, one: dict[str, bytes], cluster: Callable[..., Nodes]) -> None:
    nodes = cluster(1, 1)
    with begun(bright, *MANY, "--ray", nodes.address) as process:
        slow = workers_of(nodes.process.pid)[0]
        slow.suspend()
        try:
            output, _ = process.communicate(timeout=300)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                slow.resume()
    assert process.returncode == 0, output
    assert same(bright, one)


@pytest.mark.slow
def test_who_is_slow_to_open_does_not_work_with_what_was_before(own_ray: None, tmp_path: Path) -> None:
    from gpo_data.generation.ray import on_ray
    from gpo_data.generation.remote import Job

    def opened(name: str) -> Callable[[int], str]:
        with contextlib.suppress(FileExistsError):
            (tmp_path / name).touch(exist_ok=False)
            return lambda job: time.sleep(0.1) or f"first, {name}"
        time.sleep(3 if name == "before" else 0)
        return lambda job: time.sleep(0.1) or f"second, {name}"

    with on_ray(recipe.Ray(workers=2), QUIET) as workers:
        workers.open(opened, "before")
        workers.open(opened, "after")
        found = [result for _, result in workers.run([Job(str(i), lambda: 0) for i in range(100)])]
    assert len(found) == 100 and set(found) == {"first, after", "second, after"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_is_begun_here_ends_with_the_command(bright: Path, one: dict[str, bytes], number: int) -> None:
    with begun(bright, *MANY, "--workers", "2") as process:
        workers = workers_of(process.pid)
        assert len(workers) == 2
        all_of_it = psutil.Process(process.pid).children(recursive=True)
        (folder,) = {
            found[0] for one in all_of_it if (found := re.search(r"/tmp/gpo-ray-\w+", " ".join(one.cmdline())))
        }
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 130 and "the same command goes on from here" in output
        else:
            process.kill()
        assert ended(workers, 30)
        assert ended(all_of_it, 120)  # Ray's agents try for a minute to tell what has ended why they go
    assert not same(bright, one) and Path(folder).exists() == (number == signal.SIGKILL)
    again = run(bright, *MANY, "--workers", "2")
    assert again.returncode == 0 and "resuming" in again.stdout, again.stderr
    assert same(bright, one) and not Path(folder).exists()


@pytest.mark.slow
def test_a_shard_that_kills_is_an_error_and_not_an_endless_run(bright: Path) -> None:
    Path("words.txt").write_text("".join(f'a sign that reads "{word}"\n' for word in ("KITE", "MOON", "FATAL", "STAR")))
    settings = ["--task.prompts", "words.txt", "--task.split", "all", "--task.num_prompts", "null"]
    done = run(bright, *settings, "--evaluators", "['judge_of_ray:deadly']", "--workers", "1", "--reward", "brightness")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 workers died of it; what is finished is kept" in done.stderr

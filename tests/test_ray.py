"""Drawing by a real Ray: on this machine, and on clusters of two nodes that are also on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gpo_data import cli, recipe
from gpo_data.errors import RunError, UsageError
from gpo_data.generation.generate import draw
from gpo_data.generation.remote import kept_workers
from gpo_data.lake.locks import held
from gpo_data.lake.verify import verify
from tests.conftest import TRAIN
from tests.parts.nodes import ENVIRONMENT, Nodes
from tests.parts.nodes import cluster as cluster

QUIET = Console(quiet=True)
LOCK = "driver.lock"
JUDGE = """
import os
import time

import numpy as np


def bright(images, targets):
    time.sleep(float(os.environ.get("JUDGE_SECONDS", 0)))
    if "JUDGES" in os.environ:
        with open(os.path.join(os.environ["JUDGES"], str(os.getpid())), "a") as calls:
            calls.write(".")
    return [{"brightness": float(np.mean(image))} for image in images]


def deadly(images, targets):
    if any(target["target"] == "FATAL" for target in targets):
        os._exit(1)
    return [{"brightness": 0.0} for image in images]


bright.columns = deadly.columns = {"brightness": float}
"""


@pytest.fixture
def bright(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`recipe_file` with a quick evaluator of its own in the place of OCR."""
    monkeypatch.chdir(recipe_file.parent)
    monkeypatch.syspath_prepend(recipe_file.parent)
    Path("judge_of_ray.py").write_text(JUDGE)
    text = recipe_file.read_text().replace("evaluators: [ocr]", "evaluators: ['judge_of_ray:bright']")
    recipe_file.write_text(text[: text.index("reward:")] + "reward: brightness / 255\n")
    return recipe_file


def drawn(folder: Path) -> dict[str, bytes]:
    """Tars, and rows of sidecars, by name."""
    found = {path.name: path.read_bytes() for path in folder.glob("shard-*.tar")}
    return found | {path.name: repr(pq.read_table(path).to_pylist()).encode() for path in folder.glob("*.parquet")}


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


def command(path: Path, *options: str, verb: str = "shards", module: str = "gpo_data.cli") -> list[str]:
    return [sys.executable, "-m", module, verb, str(path), "--trust", *options]


def run(path: Path, *options: str, **kind: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(path, *options, **kind), env=ENVIRONMENT, timeout=400, capture_output=True, text=True, cwd=path.parent
    )


@contextlib.contextmanager
def begun(path: Path, *options: str, dataset: str = "*", **kind: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a session of its own, once it has committed a shard of the dataset."""
    environment = ENVIRONMENT | {"JUDGE_SECONDS": "1"}
    with subprocess.Popen(
        command(path, *options, **kind),
        env=environment,
        cwd=path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        until = time.monotonic() + 200
        try:
            while not list(path.parent.glob(f"lake/dataset={dataset}/*.tar")) and process.poll() is None:
                assert time.monotonic() < until
                time.sleep(0.1)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


MANY = ("--task.num_prompts", "24", "--group_size", "3")  # 12 shards


@pytest.fixture
def one(bright: Path) -> dict[str, bytes]:
    """What one process draws."""
    found = drawn(draw(recipe.load(bright, [*MANY, "--lake", str(bright.parent / "plain")], trust=True), QUIET))
    assert len(found) == 24
    return found


def same(path: Path, one: dict[str, bytes]) -> bool:
    folder = path.parent / "lake" / "dataset=small"
    return drawn(folder) == one and not verify(folder).problems and not list((folder / ".stage").glob("*.sample"))


def workers_of(pid: int) -> list[psutil.Process]:
    """Those below a command or a cluster that draw."""
    return [one for one in psutil.Process(pid).children(recursive=True) if "ray::Worker" in " ".join(one.cmdline())]


def ended(processes: list[psutil.Process], seconds: float = 60) -> bool:
    assert processes
    return not psutil.wait_procs(processes, timeout=seconds)[1]


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
def test_from_outside_the_cluster_with_evaluators_in_actors(
    bright: Path, one: dict[str, bytes], cluster: Callable[..., Nodes]
) -> None:
    nodes = cluster(2, 2)
    done = run(bright, *MANY, "--ray", nodes.client, "--workers", "2", "--ray.function_actors", "2")
    assert done.returncode == 0, done.stderr
    assert same(bright, one)


@pytest.mark.slow
def test_actors_read_what_one_process_reads(own_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.chdir(tmp_path)
    few = ["--task.num_prompts", "6", "--group_size", "5", "--groups_per_shard", "2", "--sampler.batch_size", "5"]
    here = drawn(draw(recipe.load("text-tiny", [*few, "--lake", "plain"]), QUIET))
    wanted = recipe.load("text-tiny", [*few, "--workers", "2", "--ocr.actors", "2"])
    with kept_workers(wanted, QUIET) as begin:
        two = draw(wanted, QUIET, workers=begin)
        workers = begin()
        assert workers is not None
        loaded = [
            one.__ray_call__.remote(lambda actor: bool(actor._evaluator._pool._measure))
            for one in workers.beside["ocr"]
        ]
        assert ray.get(loaded) == [True, True]
    assert drawn(two) == here
    rows = pq.read_table(list(two.glob("*.parquet"))).to_pylist()
    assert len({row["ocr_text"] for row in rows}) > 6 and len({row["reward"] for row in rows}) > 2


@pytest.mark.slow
def test_a_policy_travels(bright: Path, random_sd3: Path, cluster: Callable[..., Nodes]) -> None:
    from diffusers import SD3Transformer2DModel

    policy = bright.parent / "policy"
    denoiser = SD3Transformer2DModel.from_pretrained(random_sd3 / "transformer")
    for weight in denoiser.parameters():
        weight.data += 0.01
    denoiser.save_pretrained(policy / "transformer")
    other = ["--policy", "policy", "--name", "other"]
    here = drawn(draw(recipe.load(bright, [*other, "--lake", "plain"], trust=True), QUIET))
    plain = drawn(draw(recipe.load(bright, ["--lake", "plain", "--name", "base"], trust=True), QUIET))
    nodes = cluster(1, 1)
    done = run(bright, *other, "--ray", nodes.address)
    assert done.returncode == 0, done.stderr
    assert drawn(bright.parent / "lake/dataset=other") == here != plain


@pytest.mark.slow
def test_what_only_the_driver_has_travels(bright: Path, random_sd3: Path, tmp_path: Path, monkeypatch: Any) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'gpo[ray]'")
    from gpo_data.generation import travel
    from gpo_data.models import weights_digest

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    model = shutil.copytree(random_sd3, tmp_path / "mine")
    mine = travel.absolute(recipe.load(bright, ["--model", str(model)], trust=True))
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert travel.sent(mine, everywhere=True) == {}
        everywhere = travel.sent(mine, everywhere=False)
        with travel.arrived(mine, everywhere) as there:
            assert everywhere["model"].parts == {} and there == mine
        with monkeypatch.context() as patch:
            patch.setattr(travel, "has", lambda path, digest: False)
            files = travel.sent(mine, everywhere=False)
            shutil.rmtree(model)
            with travel.arrived(mine, files) as there, travel.arrived(mine, files) as again:
                assert there.model != mine.model and weights_digest(Path(there.model)) == weights_digest(random_sd3)
                assert again == there
        with pytest.raises(RunError, match="joined the cluster later"), travel.arrived(mine, everywhere):
            pass
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_all_verbs_have_workers(bright: Path, one: dict[str, bytes]) -> None:
    few = ["--workers", "2"]
    done = run(bright, "--workers", "2", "--ray.num_gpus", "1")
    assert done.returncode == 2 and "and there are 0; take fewer with --workers" in done.stderr
    assert run(bright, *few).returncode == 0
    again = run(bright, *few, "--redraw", "5", verb="verify")
    assert again.returncode == 0 and again.stdout.count("as stored; reward") == 5, again.stdout
    measured = Path("lake/dataset=small/measures")
    tables = []
    for options in ([], few):
        assert run(bright, *options, "--evaluator", "image_stats", verb="measure").returncode == 0
        tables.append({path.name: pq.read_table(path) for path in measured.rglob("*.parquet")})
        for path in measured.rglob("*.parquet"):
            path.unlink()
    assert len(tables[0]) == 3 and tables[0] == tables[1]


@pytest.mark.slow
def test_online_with_workers_is_online(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = ["--workers", "1", "--train.trainer.devices", "2", "--train.trainer.strategy", "ddp"]
    for name, options in (("one", []), ("two", ["--workers", "2"]), ("ranks", ranks)):
        done = run(
            here,
            *options,
            "--mode",
            "online",
            "--online.iterations",
            "2",
            "--run",
            name,
            verb="fit",
            module="gpo_train.cli",
        )
        assert done.returncode == 0, done.stderr
    for number in range(2):
        one, two = (drawn(Path(f"lake/dataset={name}-it{number:04d}")) for name in ("one", "two"))
        assert len(one) == 6 and one == two
        ranked = drawn(Path(f"lake/dataset=ranks-it{number:04d}"))
        assert ranked.keys() == one.keys() and (number or ranked == one)  # then their policies differ by rounding
    found = {}
    for name, options in (("one", []), ("two", ["--workers", "2"])):
        done = run(here, *options, "--mode", "online", "--run", name, verb="eval", module="gpo_train.cli")
        assert done.returncode == 0, done.stderr
        said = json.loads(Path(f"runs/{name}/eval.json").read_text())
        sides = {folder.name.replace(f"={name}-", "=run-"): folder for folder in Path("lake").glob("dataset=*-eval-*")}
        found[name] = {key: said[key] for key in ("base", "policy", "by_target")}
        found[name] |= {key: drawn(folder) for key, folder in sides.items()}
        assert len(sides) == 2
        for folder in sides.values():
            shutil.rmtree(folder)
    assert found["one"] == found["two"]


@pytest.mark.slow
def test_a_node_dies_while_a_policy_draws(bright: Path, cluster: Callable[..., Nodes]) -> None:
    bright.write_text(bright.read_text() + TRAIN)
    settings = ["--mode", "online", "--online.iterations", "2", "--task.num_prompts", "12", "--group_size", "3"]
    fit = {"verb": "fit", "module": "gpo_train.cli"}
    done = run(bright, *settings, "--run", "one", **fit)
    assert done.returncode == 0, done.stderr
    nodes = cluster(1, 1)
    settings += ["--run", "two", "--ray", nodes.address]
    with begun(bright, *settings, dataset="two-it0001", **fit) as process:
        nodes.kill_last()
        assert len(list(Path("lake/dataset=two-it0001").glob("*.tar"))) < 6
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "a worker died; another takes its place" in output
    for number in range(2):
        one, two = (drawn(Path(f"lake/dataset={name}-it{number:04d}")) for name in ("one", "two"))
        assert len(one) == 12 and one == two
    policies = [
        {path.name: path.read_bytes() for path in Path(f"runs/{name}/policy").rglob("*.safetensors")}
        for name in ("one", "two")
    ]
    assert policies[0] == policies[1] != {}


@pytest.mark.slow
def test_a_shard_that_kills_is_an_error_and_not_an_endless_run(bright: Path) -> None:
    Path("words.txt").write_text("".join(f'a sign that reads "{word}"\n' for word in ("KITE", "MOON", "FATAL", "STAR")))
    settings = ["--task.prompts", "words.txt", "--task.split", "all", "--task.num_prompts", "null"]
    done = run(bright, *settings, "--evaluators", "['judge_of_ray:deadly']", "--workers", "1", "--reward", "brightness")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 workers died of it; what is finished is kept" in done.stderr

"""By a real Ray: evaluators in actors, what travels to the workers, and the verbs besides `shards`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gpo_data import recipe
from gpo_data.errors import RunError
from gpo_data.generation.generate import draw
from gpo_data.generation.remote import kept_workers
from tests.conftest import TRAIN
from tests.parts.nodes import Nodes
from tests.parts.nodes import cluster as cluster
from tests.parts.ray import MANY, QUIET, begun, drawn, run, same
from tests.parts.ray import bright as bright
from tests.parts.ray import one as one


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
    both = run(bright, *few, "--evaluator", "image_stats", "--evaluator", "color", verb="measure")
    assert both.returncode == 0 and "measured 6 of 6 shards" in both.stdout and "another process" not in both.stdout


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

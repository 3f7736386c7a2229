"""Drawing on real parts: a real pipeline with random weights, real OCR, real files; interrupted, resumed, failing."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from gpo_data import cli, evaluators, models, recipe
from gpo_data.audit import show
from gpo_data.errors import Interrupted, RunError, UsageError
from gpo_data.evaluators import image_stats
from gpo_data.generation.generate import draw
from gpo_data.generation.measure import measure
from gpo_data.generation.plan import PlannedGroup, PlannedShard, plan
from gpo_data.generation.redraw import redraw
from gpo_data.generation.worker import Generator
from gpo_data.group import Group, from_sample
from gpo_data.lake.manifest import identity, open_dataset
from gpo_data.lake.record import Record
from gpo_data.lake.shard import dataset_folder
from gpo_data.lake.verify import verify
from gpo_data.prompt import Prompt
from gpo_data.sharing.pictures import files_of, write_pictures
from gpo_data.status import OK
from tests.parts.disk import needs_mount, small_disk


def quiet() -> Console:
    return Console(record=True, quiet=True)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("shard-*"))}


@pytest.fixture
def drawn(drawn_lake: Path, recipe_file: Path) -> tuple[recipe.Recipe, Path]:
    """The recipe and its dataset, in a lake of the test's own."""
    made = recipe.load(recipe_file)
    return made, Path(shutil.copytree(drawn_lake, made.lake)) / "dataset=small"


def test_draws_verified_groups_of_distinct_members(drawn: tuple[recipe.Recipe, Path]) -> None:
    _, folder = drawn
    report = verify(folder)
    assert (report.shards, report.groups, report.members, report.failed, report.problems) == (3, 6, 24, 0, [])
    rows = pq.read_table(folder / "shard-000001.parquet").to_pylist()
    assert {"target", "ocr_text", "entropy", "reward", "seed"} <= rows[0].keys()
    first = from_sample(Record.of(rows[0], folder).read())
    assert first.latents.shape == (4, 16, 8, 8) and first.images[0] is not None
    assert not torch.equal(first.latents[0], first.latents[1])


@pytest.mark.parametrize(
    ("group_size", "batch_size", "parts"),
    [(4, 4, [[0], [1], [2], [3]]), (4, 2, [[0], [1], [2], [3]]), (4, 6, [[0, 1, 2], [3]]), (4, 64, [[0, 1, 2, 3]])],
)
def test_parts_of_a_shard_share_no_batch(group_size: int, batch_size: int, parts: list[list[int]]) -> None:
    prompt = Prompt("p", "a sign", {})
    shard = PlannedShard(0, [PlannedGroup(str(g), prompt, list(range(group_size))) for g in range(4)])
    assert shard.parts(batch_size) == parts
    for batch in shard.batches(batch_size):
        assert len([part for part in parts if {g for g, _ in batch} & set(part)]) == 1


def test_a_member_is_what_the_plain_pipeline_draws(drawn: tuple[recipe.Recipe, Path]) -> None:
    from diffusers import StableDiffusion3Pipeline

    made, folder = drawn
    row = pq.read_table(folder / "shard-000000.parquet").to_pylist()[5]
    group = from_sample(Record.of(row, folder).read())
    pipe = StableDiffusion3Pipeline.from_pretrained(made.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(
        row["prompt"],
        generator=torch.Generator().manual_seed(row["seed"]),
        num_inference_steps=2,
        guidance_scale=2.0,
        height=64,
        width=64,
        max_sequence_length=1,
        output_type="latent",
    ).images
    torch.testing.assert_close(latents[0], group.latents[row["member"]], rtol=1e-4, atol=1e-4)


def test_same_recipe_same_bytes(drawn: tuple[recipe.Recipe, Path], recipe_file: Path, tmp_path: Path) -> None:
    again = draw(recipe.load(recipe_file, ["--lake", str(tmp_path / "lake2")]), quiet())
    assert shard_bytes(again) == shard_bytes(drawn[1])


def test_interrupted_and_resumed_equals_never_interrupted(
    drawn: tuple[recipe.Recipe, Path], recipe_file: Path, tmp_path: Path
) -> None:
    made = recipe.load(recipe_file, ["--lake", str(tmp_path / "lake2")])
    shards, folder_of = plan(made), models.resolve(made.model)
    fields = identity(made, folder_of, shards)
    folder, stop = open_dataset(made, fields), threading.Event()
    generator = Generator(
        made,
        folder,
        recipe.fingerprint_of(fields),
        models.load(folder_of, made.sampler),
        evaluators.build(made),
        on_group=lambda group: stop.set(),
        stop=stop,
    )
    with pytest.raises(Interrupted):
        for shard in shards:
            generator.draw(shard)
            stop.wait(60)  # until the first group is on the stage
    generator.close()
    assert len(list(folder.glob("shard-*.parquet"))) < 3
    draw(made, quiet())
    assert shard_bytes(folder) == shard_bytes(drawn[1])


def test_a_second_run_draws_nothing(drawn: tuple[recipe.Recipe, Path]) -> None:
    before = {p: p.stat().st_mtime_ns for p in drawn[1].glob("shard-*")}
    console = Console(record=True, file=io.StringIO())
    draw(drawn[0], console)
    assert "nothing to draw: all 3 shards" in console.export_text()
    assert before == {p: p.stat().st_mtime_ns for p in drawn[1].glob("shard-*")}


def test_another_recipe_is_refused_with_what_differs(drawn: tuple[recipe.Recipe, Path], recipe_file: Path) -> None:
    with pytest.raises(UsageError, match=r"sampler.guidance_scale: 2.0 there, 3.0 in the recipe"):
        draw(recipe.load(recipe_file, ["--sampler.guidance_scale", "3"]), quiet())
    with pytest.raises(UsageError, match=r"reward: .* there, 'text_exact"):
        draw(recipe.load(recipe_file, ["--reward", "text_exact(target, ocr_text)"]), quiet())


def test_an_evaluator_that_raises_gives_a_status_row_and_is_retried(
    recipe_file: Path, drawn_lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe.load(recipe_file)
    measure = image_stats.ImageStats.measure
    bad: list[bytes] = []

    def raises_on_one(self: Any, images: list[Any], targets: list[Any]) -> list[Any]:
        if not bad and len(images) > 2:  # and not the blank one that it is tried on
            bad.append(images[2].tobytes())
        if any(image.tobytes() in bad for image in images):
            raise ValueError("cannot look at this one")
        return measure(self, images, targets)

    with monkeypatch.context() as patch:
        patch.setattr(image_stats.ImageStats, "measure", raises_on_one)
        folder = draw(made, quiet())
    rows = [r for p in sorted(folder.glob("shard-*.parquet")) for r in pq.read_table(p).to_pylist()]
    failed = [r for r in rows if r["status"] != "ok"]
    assert [row["status"] for row in failed] == ["failed_evaluator"]
    assert "ValueError: cannot look at this one" in failed[0]["status_reason"]
    assert failed[0]["reward"] is None and verify(folder).failed == 1
    draw(made, quiet())
    assert shard_bytes(folder) == shard_bytes(drawn_lake / "dataset=small")


def test_where_every_member_fails_the_run_fails_and_says_why(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = image_stats.ImageStats.measure

    def raises(self: Any, images: list[Any], targets: list[Any]) -> list[Any]:
        if not any(image.std() for image in images):
            return measure(self, images, targets)  # the blank picture that it is tried on
        raise ModuleNotFoundError("No module named 'eyes'")

    def never(self: Any, images: list[Any], targets: list[Any]) -> list[Any]:
        raise ModuleNotFoundError("No module named 'eyes'")

    small = ["shards", str(recipe_file), "--task.num_prompts", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(image_stats.ImageStats, "measure", never)
        assert cli.main(small) == 1
        assert "evaluator image_stats fails on a blank picture" in " ".join(capsys.readouterr().err.split())
        assert not dataset_folder(recipe.load(recipe_file).lake, "small").exists()  # the name stays free
        patch.setattr(image_stats.ImageStats, "measure", raises)
        assert cli.main(small) == 1
    said = capsys.readouterr()
    assert "8 members failed: image_stats: ModuleNotFoundError: No module named 'eyes'" in said.out
    assert "all 8 members failed: image_stats: ModuleNotFoundError" in " ".join(said.err.split())
    assert cli.main(small) == 0  # what was kept is tried again


def test_where_many_members_fail_drawing_stops_and_keeps_what_it_has(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = image_stats.ImageStats.measure

    def half_blind(self: Any, images: list[Any], targets: list[Any]) -> list[Any]:
        if any(int(image.sum()) % 2 for image in images):
            raise ValueError("an odd one")
        return measure(self, images, targets)

    line = ["shards", str(recipe_file), "--task.num_prompts", "24"]
    folder = dataset_folder(recipe.load(recipe_file).lake, "small")
    with monkeypatch.context() as patch:
        patch.setattr(image_stats.ImageStats, "measure", half_blind)
        assert cli.main(line) == 1
        said = capsys.readouterr()
        assert re.search(r"^  \d\d members failed: image_stats: ValueError: an odd one$", said.out, re.MULTILINE)
        assert re.fullmatch(
            r"error: \d\d of \d\d members failed, more than max_failed: 0.2 allows, most often: image_stats: .*\n",
            said.err,
        )
        kept = verify(folder)
        assert kept.problems == [] and 14 <= kept.groups < 24 and 0.2 < kept.failed / kept.members < 0.8
        assert cli.main([*line, "--max_failed", "0.9"]) == 0
        assert verify(folder).groups == 24
    assert cli.main(line) == 0 and verify(folder).failed == 0  # the same dataset, whose failed members are tried again


def test_nan_from_the_model_gives_a_status_row(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpo_data.models.sd3 import SD3

    plain = SD3.draw

    def poisoned(self: Any, conditioning: Any, seeds: list[int], on_step: Any = None) -> torch.Tensor:
        latents = plain(self, conditioning, seeds, on_step).clone()
        latents[1] = float("nan")
        return latents

    with monkeypatch.context() as patch:
        patch.setattr(SD3, "draw", poisoned)
        folder = draw(recipe.load(recipe_file), quiet())
    report = verify(folder)
    assert report.failed == 6 and report.problems == []  # one in each batch: a shard is two batches, 6 and 2 members
    write_pictures(folder, tmp_path)
    shown = pq.read_table(tmp_path / files_of("small", "00000"), columns=["status", "image"]).to_pylist()
    assert [row["image"] is None for row in shown] == [row["status"] != OK for row in shown]
    assert sum(row["image"] is None for row in shown) == 6
    draw(recipe.load(recipe_file), quiet())
    assert verify(folder).failed == 0


def test_redraw_agrees(drawn: tuple[recipe.Recipe, Path]) -> None:
    for row in redraw(drawn[0], drawn[1], 5):
        assert row.agrees and row.difference < 1e-4
        assert row.reward_again == pytest.approx(row.reward, abs=0.02)


def test_redraw_finds_what_another_recipe_drew(
    drawn: tuple[recipe.Recipe, Path], recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(recipe_file), "--redraw", "3"]) == 0
    assert capsys.readouterr().out.count("as stored; reward") == 3
    assert cli.main(["verify", str(recipe_file), "--redraw", "3", "--sampler.num_inference_steps", "3"]) == 1
    assert "3 of 3 members are not what the recipe draws" in capsys.readouterr().out


def test_repaired_damage_is_drawn_again(drawn: tuple[recipe.Recipe, Path], recipe_file: Path) -> None:
    before = shard_bytes(drawn[1])
    tar = drawn[1] / "shard-000001.tar"
    tar.write_bytes(before[tar.name][:-700])
    assert cli.main(["verify", str(recipe_file)]) == 1
    assert cli.main(["verify", str(recipe_file), "--repair"]) == 0
    draw(drawn[0], quiet())
    assert shard_bytes(drawn[1]) == before


@pytest.mark.parametrize(
    ("width", "height", "cell"),
    [(64, 32, (128, 64)), (32, 64, (64, 128)), (512, 256, (256, 128)), (90, 1000, (23, 256))],
)
def test_pictures_of_any_shape_lie_beside_each_other(width: int, height: int, cell: tuple[int, int]) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [np.full((height, width, 3), colour, np.uint8) for colour in colours]
    group = Group(
        key="text-00000000",
        prompt=Prompt("p", "a sign", {"target": "AB"}),
        seeds=[0, 1, 2],
        latents=torch.zeros(3, 1, 1, 1),
        conditioning={},
        images=[*pictures],
        statuses=["ok"] * 3,
        reasons=[None] * 3,
        measurements=[{}] * 3,
        rewards=[None] * 3,
    )
    shown = np.asarray(show.grid([group])).reshape(-1, 3)
    assert [int((shown == colour).all(1).sum()) for colour in colours] == [cell[0] * cell[1]] * 3


def test_show_writes_a_grid(drawn: tuple[recipe.Recipe, Path], recipe_file: Path) -> None:
    assert cli.main(["show", str(recipe_file), "--limit", "2"]) == 0
    assert (drawn[1] / "show.png").stat().st_size > 1000
    assert cli.main(["show", str(recipe_file), "--group", "text-99999999"]) == 2


def test_devices_of_a_cluster_need_not_be_here(drawn: tuple[recipe.Recipe, Path], recipe_file: Path) -> None:
    """All is drawn and measured, so that no cluster has to be there either."""
    devices = ["--sampler.device", "cuda:77", "--ocr.device", "gpu:77"]
    cluster = recipe.load(recipe_file, [*devices, "--ray.address", "127.0.0.1:1"])
    assert draw(cluster, quiet()) == drawn[1] and measure(cluster) == []
    for here in ([], ["--ray.address", "127.0.0.1:1", "--ray.workers", "0"], ["--ray.workers", "1"]):
        with pytest.raises(UsageError, match="cuda:77: not on this machine"):
            draw(recipe.load(recipe_file, [*devices, *here]), quiet())
    count = ["--task.kind", "count", "--evaluators", "[yolo]", "--reward", "n_detected"]
    count += ["--yolo.weights", "tiny", "--yolo.device", "cuda:77"]
    made = recipe.load(recipe_file, [*count, "--ray.address", "127.0.0.1:1"])
    found = evaluators.build(evaluators.on_driver(made))
    assert evaluators.versions_of(found) == evaluators.versions_of(
        evaluators.build(recipe.load(recipe_file, [*count, "--yolo.device", "cpu"]))
    )


@needs_mount
def test_a_full_disk_stops_clearly_and_the_next_run_goes_on(
    drawn: tuple[recipe.Recipe, Path], recipe_file: Path, tmp_path: Path
) -> None:
    with small_disk(disk := tmp_path / "disk", "160k") as resize:
        made = recipe.load(recipe_file, ["--lake", str(disk)])
        with pytest.raises(RunError, match="No space left on device; the lake is valid"):
            draw(made, quiet())
        assert verify(disk / "dataset=small").problems == []
        resize("8m")
        assert shard_bytes(draw(made, quiet())) == shard_bytes(drawn[1])


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_weights_that_are_changed_in_place_are_another_model(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    from gpo_data.models import digests

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if large:
        monkeypatch.setattr(digests, "LARGE", 1000)  # of which the digest is remembered
    made = recipe.load(recipe_file, ["--task.num_prompts", "2"])
    own = dataclasses.replace(made, model=str(shutil.copytree(made.model, tmp_path / "own")))
    draw(own, Console(quiet=True))
    assert (tmp_path / "cache/gpo/digests.json").is_file() == large
    weights = next(Path(own.model).glob("transformer/*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UsageError, match="drew other pictures.* weights_digest"):
        draw(own, Console(quiet=True))


def test_every_byte_of_the_weights_counts(tmp_path: Path) -> None:
    file = tmp_path / "unet" / "diffusion_pytorch_model.bin"
    file.parent.mkdir()
    file.write_bytes(bytes(3 << 20))
    before = models.weights_digest(tmp_path)
    with file.open("r+b") as stream:
        stream.seek(3 << 19)
        stream.write(b"x")
    assert models.weights_digest(tmp_path) != before

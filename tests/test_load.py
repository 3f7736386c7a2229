"""Many datasets, many groups: what a question and a read cost does not grow with what they are not about."""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from gpo_data.audit import audit
from gpo_data.errors import RunError, UsageError
from gpo_data.group import Group
from gpo_data.lake import catalog, latents
from gpo_data.lake.lake import Lake
from gpo_data.lake.latents import LARGE, StoredLatents
from gpo_data.lake.reader import Reader, TrainGroup, spread
from gpo_data.lake.shard import commit
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.lake.stage import stage
from gpo_data.parts import Archive, Damage
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe, Train
from gpo_data.tasks import align
from gpo_train.data import GroupLoader
from gpo_train.noise import MemberNoise, sample_noise
from gpo_train.policy import Policy
from gpo_train.snapshot import dataset_names
from tests.parts.lake import rows_of, write_shard


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    write_shard(str(tmp_path / "dataset=a"), 0, rows_of(0, [0.0, 1.0]) + rows_of(1, [0.5, 0.5]))
    write_shard(str(tmp_path / "dataset=a"), 1, rows_of(2, [0.0, None, 1.0, 0.5]))
    return tmp_path


def test_a_question_to_one_dataset_opens_no_other(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does one to a dataset that is not there: in a lake of thousands that would be seconds."""
    write_shard(str(lake / "dataset=b"), 0, rows_of(0, [1.0, 0.0]))
    (lake / "dataset=b/shard-000000.parquet").write_bytes(b"no Parquet")
    query = "SELECT count(*) AS n FROM members"
    assert catalog.ask(str(lake), query, dataset=["a"])["n"].to_pylist() == [8]
    for ask in (
        lambda: catalog.ask(str(lake), query, dataset=["c"]),
        lambda: take_snapshot(catalog.connect(str(lake), "c"), "c"),
    ):
        with pytest.raises(UsageError, match="'c'.*: a, b"):
            ask()
    assert capsys.readouterr().err == ""
    assert catalog.ask(str(lake), query)["n"].to_pylist() == [8]
    assert "left out dataset b" in capsys.readouterr().err


@pytest.mark.slow
def test_questions_to_one_of_two_thousand_datasets_take_less_than_a_second(lake: Path) -> None:
    shutil.copy(lake / "dataset=a/shard-000000.parquet", lake / "dataset=a/shard-000002.parquet")
    for number in range(2000):
        shutil.copytree(lake / "dataset=a", lake / f"dataset=d{number:04d}")
    written(lake, 150, 4, (4, 8, 8))
    recipe = Recipe(lake=str(lake), evaluators=["color"], reward="1")
    name, query = "d0007", "SELECT count(*) FROM members"
    questions = {
        "sql": lambda: catalog.ask(str(lake), query, dataset=[name]),
        "members": lambda: Lake(str(lake))[name].members(),
        "audit": lambda: audit.run(str(lake), "many"),  # of 3 shards, whose tars are there for its pictures
        "connect": lambda: catalog.connect(str(lake), name).execute(query).fetchall(),
        "no such dataset": lambda: take_snapshot(catalog.connect(str(lake), "d"), "d"),
        "no such name": lambda: Lake(str(lake))["d"],
        "no such glob": lambda: dataset_names(recipe, Train(datasets="x*")),
    }
    for what, question in questions.items():
        began = time.process_time()
        try:
            question()
        except UsageError as error:
            assert len(str(error)) < 400 and "and 1,992 more" in str(error)
        taken = time.process_time() - began
        print(f"{what}: {taken:.2f} s of CPU")
        assert taken < 1, what


def written(lake: Path, groups: int, members: int, shape: tuple[int, ...]) -> Reader:
    """A reader of a dataset of `groups` groups, 50 a shard, with latents of that shape."""
    folder = lake / "dataset=many"
    (folder / ".stage").mkdir(parents=True)
    facts = {"name": "many", "fingerprint": "f00d", "fields": {}, "measured": {}, "recipe": {}, "versions": {}}
    facts["recipe"] = {"task": {"kind": "align"}, "reward": "reward"}
    (folder / "dataset.json").write_text(json.dumps(facts))
    for first in range(0, groups, 50):
        keys = [f"align-{number:08d}" for number in range(first, min(first + 50, groups))]
        for key in keys:
            group = Group(
                key,
                Prompt(key[6:], f"prompt {key}", {"target": "AB", "color": "red"}),
                list(range(members)),
                torch.randn(members, *shape),
                {"prompt_embeds": torch.randn(64, 256)},
                [np.zeros((64, 64, 3), np.uint8)] * members,
                ["ok"] * members,
                measurements=[{}] * members,
                rewards=[float(member % 2) for member in range(members)],
            )
            stage(folder, group, "f00d")
        commit(folder, first // 50, keys, align.COLUMNS, "f00d")
    return Reader(str(lake), take_snapshot(catalog.connect(str(lake), "many"), "many"))


def megabytes(name: str) -> float:
    """`VmRSS`, what this process holds now, or `VmHWM`, the most since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def held_over(reader: Reader) -> list[float]:
    """Megabytes held after every group of an epoch, as training reads it."""
    return [megabytes("VmRSS") for _ in GroupLoader(reader, [[index] for index in range(len(reader))], workers=0)]


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_memory_does_not_grow_with_the_groups_that_are_read(tmp_path: Path) -> None:
    held = held_over(written(tmp_path, 200, 4, (16, 32, 32)))  # 260 kB of latents each
    assert max(held[100:]) - max(held[50:100]) < 5  # 26 MB, if they stayed


@linux
@pytest.mark.slow
def test_memory_over_two_thousand_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Writes runs/memory.png and .csv, for people."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    held = held_over(written(tmp_path, 2000, 4, (16, 32, 32)))
    out = Path(__file__).parents[1] / "runs"
    out.mkdir(exist_ok=True)
    rows = [f"{index + 1},{value:.1f}" for index, value in enumerate(held)]
    (out / "memory.csv").write_text("groups,megabytes\n" + "\n".join(rows) + "\n")
    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(held)
    axes.set(xlabel="groups read", ylabel="resident memory, MB", ylim=(0, 1.2 * max(held)))
    figure.savefig(out / "memory.png")
    pyplot.close(figure)
    with capsys.disabled():
        print(f"\n{len(held)} groups: {held[99]:.0f} MB after 100, {held[-1]:.0f} MB after all, most {max(held):.0f}")
    assert max(held[100:]) - held[99] < 10


@linux
def test_a_large_group_is_held_once(tmp_path: Path) -> None:
    """256 members of 256 kB: the latents, without the tar's bytes beside them."""
    reader = written(tmp_path, 1, 256, (16, 64, 64))
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    group = reader[0]
    size = group.latents.nbytes / 2**20
    assert size == 64 and megabytes("VmHWM") - before < 1.3 * size


@linux
def test_latents_of_a_large_group_are_read_by_rows(tmp_path: Path) -> None:
    """96 MB of 384 members: opening it and asking for the rows of a micro-batch holds neither twice nor once."""
    reader = written(tmp_path, 1, 384, (16, 64, 64))
    whole = reader[0].latents[:]
    snapshot = take_snapshot(catalog.connect(reader.lake, "many"), "many", where="member % 3 <> 1")
    lazily = Reader(reader.lake, snapshot, large=LARGE)
    rows = torch.tensor([200, 3, 3, 77])
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    group = lazily[0]
    found = group.latents[rows]
    assert whole.nbytes == 96 * 2**20 and megabytes("VmHWM") - before < 15
    kept = whole[[member for member in range(384) if member % 3 != 1]]
    assert isinstance(group.latents, StoredLatents) and group.latents.shape == kept.shape
    assert torch.equal(found, kept[rows]) and torch.equal(group.latents[:], kept)
    assert spread(group.latents) == pytest.approx(kept.var(dim=0).mean().sqrt().item(), rel=1e-6)


def test_damage_of_a_large_group_is_told_before_and_while_it_is_read(tmp_path: Path) -> None:
    reader = written(tmp_path, 2, 4, (16, 32, 32))
    reader.large = 1
    first, second = reader[0], reader[1]
    assert isinstance(first.latents, StoredLatents)
    tar = tmp_path / "dataset=many/shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[first.latents.rows[2].offset + 7] ^= 1
    tar.write_bytes(content)
    assert torch.equal(reader[1].latents[:], second.latents[:])  # another record
    assert first.latents[[0, 1, 3]].shape == (3, 16, 32, 32)
    for read in (lambda: first.latents[2:3], lambda: reader[0]):
        with pytest.raises(RunError, match=r"shard-000000\.tar: damaged at bytes .* verify RECIPE --repair"):
            read()
    tar.unlink()
    for read in (lambda: first.latents[:1], lambda: reader[0]):
        with pytest.raises(RunError, match="no such file"):
            read()


def test_rows_that_are_read_or_made_are_those_that_are_held(tmp_path: Path) -> None:
    reader = written(tmp_path, 1, 6, (16, 8, 8))
    policy = Policy.load("tiny", Train(tuning="full", reference="frozen", precision="float32"))
    held, noise = reader[0], sample_noise(reader[0], k=3, seed=0, shared=False)
    reader.large = 1
    by_rows = sample_noise(reader[0], k=3, seed=0, shared=False, large=0)
    assert isinstance(by_rows.e, MemberNoise) and by_rows.e.shape == noise.e.shape
    assert torch.equal(by_rows.u, noise.u)
    for rows in (slice(0, 4), slice(4, 9), slice(9, 18)):
        ours, theirs = policy._asked(reader[0], by_rows, rows), policy._asked(held, noise, rows)
        assert torch.equal(ours.x_t, theirs.x_t) and torch.equal(ours.target, theirs.target)


@pytest.mark.parametrize(
    "header",
    [
        b"no JSON",
        b"{}",
        b'{"latents": 3}',
        b'{"latents": {"dtype": "I8", "shape": [2, 1, 2, 2], "data_offsets": [0, 8]}}',
        b'{"latents": {"dtype": "F32", "shape": [2, 1, 2, 2], "data_offsets": ["a", 8]}}',
        b'{"latents": {"dtype": "F32", "shape": [2, -1, -2, 2], "data_offsets": [0, 32]}}',
        b'{"latents": {"dtype": "F32", "shape": [2, 0, 2, 2], "data_offsets": [0, 0]}}',
        b'{"latents": {"dtype": "F32", "shape": [3, 1, 2, 2], "data_offsets": [0, 48]}}',
        b'{"latents": {"dtype": "F32", "shape": [2, 1, 2, 2], "data_offsets": [0, 4000]}}',
        b'{"latents": {"dtype": "F32", "shape": [2, 1, 2, 2], "data_offsets": [-32, 0]}}',
    ],
)
def test_a_header_that_lies_is_damage(header: bytes) -> None:
    part = len(header).to_bytes(8, "little") + header + bytes(32)
    archive = Archive(io.BytesIO(part), "a", {"latents.safetensors": (0, len(part))})
    with pytest.raises(Damage, match=r"latents\.safetensors: expected"):
        latents._stored("shard-000000.tar", io.BytesIO(part), archive, [0, 1], ["ok", "ok"])


@linux
def test_a_micro_batch_costs_memory_by_its_rows() -> None:
    """Of a group of 20,000 members: its shared noise copied for each of them is 1.6 GB, its latents 328 MB."""
    policy = Policy.load("tiny", Train(tuning="full", reference="frozen", precision="float32"))
    members, tiny = tuple(range(20_000)), policy.model.denoiser.config
    latents = torch.zeros(1, tiny.in_channels, 16, 16, dtype=torch.bfloat16).expand(len(members), -1, -1, -1)
    embeds = {"prompt_embeds": torch.zeros(1, 256), "pooled_prompt_embeds": torch.zeros(64)}
    nothing = torch.zeros(len(members), dtype=torch.float64)
    group = TrainGroup("x/align-0", "a", members, members, latents, embeds, nothing, nothing)
    noise = sample_noise(group, k=5, seed=0)
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    policy._asked(group, noise, slice(60_000, 60_008))
    assert megabytes("VmHWM") - before < 40

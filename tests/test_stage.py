"""The stage is not trusted, and what several processes do at once to one dataset does no harm."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpo_data import cli, recipe, status
from gpo_data.errors import RunError, UsageError
from gpo_data.generation import generate
from gpo_data.generation.plan import PlannedGroup, PlannedShard
from gpo_data.lake import durable
from gpo_data.lake.locks import claim
from gpo_data.lake.manifest import open_dataset, read_manifest
from gpo_data.lake.record import Record
from gpo_data.lake.repair import repair
from gpo_data.lake.shard import commit
from gpo_data.lake.sidecar import read_rows
from gpo_data.lake.stage import BLOCK, stage, stage_blocks, staged, staged_path
from gpo_data.lake.verify import verify
from gpo_data.recipe import Recipe
from tests.parts.shard import COLUMNS, MANIFEST, make_group

GONE = 2**22 + 1  # above the largest process id of Linux


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset=x"
    (folder / ".stage").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(MANIFEST))
    return folder


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in its head": lambda data: data[:100],
    "cut after its head": lambda data: data[:BLOCK],
    "cut": lambda data: data[:-512],
    "a byte flipped": lambda data: flip(data, 3000),
    "a byte flipped in its head": lambda data: flip(data, 12),
    "of 0.1, without a head": lambda data: data[BLOCK:],
    "something else": lambda data: b"[" * 100_000,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_group_is_as_if_it_were_not_staged(kind: str, folder: Path) -> None:
    group = make_group(0)
    stage(folder, group, "f")
    assert staged(folder, group.key, "f", group.seeds) is not None
    path = staged_path(folder, group.key)
    path.write_bytes(DAMAGES[kind](path.read_bytes()))
    assert staged(folder, group.key, "f", group.seeds) is None
    with pytest.raises(RunError, match=r"text-00000000.sample: lost or damaged .* run the same command again"):
        commit(folder, 0, [group.key], COLUMNS, "f")


def test_a_group_that_was_not_planned_so_is_not_taken(folder: Path) -> None:
    group = make_group(0)
    stage(folder, group, "f")
    assert staged(folder, group.key, "another") is None
    assert staged(folder, group.key, "f", [1, 2, 3]) is None
    shutil.copy(staged_path(folder, group.key), staged_path(folder, "text-00000001"))
    assert staged(folder, "text-00000001", "f") is None
    assert staged(folder, "text-00000009", "f") is None


def test_what_is_damaged_on_the_stage_is_drawn_again_and_leftovers_go(drawn_lake: Path, recipe_file: Path) -> None:
    made = recipe.load(recipe_file)
    folder = Path(shutil.copytree(drawn_lake, made.lake)) / "dataset=small"
    before = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    fingerprint = read_manifest(folder).fingerprint
    rows = {row["group_key"]: row for row in read_rows(folder / "shard-000001.parquet")}
    for key, row in rows.items():
        stage_blocks(folder, key, Record.of(row, folder).blocks(), fingerprint)
    damaged = staged_path(folder, next(iter(rows)))
    damaged.write_bytes(flip(damaged.read_bytes(), 5000))
    for name in ("shard-000001.parquet", "shard-000001.tar"):
        (folder / name).unlink()
    leftovers = [
        staged_path(folder, "text-00000000"),  # of a shard that is committed
        folder / f"dataset.json.{durable.HOST}-{GONE}.tmp",
        folder / f"dataset.json.{GONE}.tmp",  # as 0.1 named it
        folder / f"shard-000001.tar.{durable.HOST}-{GONE}.tmp",
    ]
    for path in leftovers:
        path.write_bytes(b"left by a kill")
    console = Console(record=True, quiet=True)
    generate.draw(made, console)
    assert {path.name: path.read_bytes() for path in folder.glob("shard-*")} == before
    assert not [path for path in leftovers if path.exists()] and verify(folder).problems == []


def test_a_temporary_of_another_machine_or_a_living_process_stays(tmp_path: Path) -> None:
    others = [tmp_path / f"x.json.{name}.tmp" for name in (f"elsewhere-{GONE}", f"{durable.HOST}-{os.getppid()}")]
    stale = tmp_path / f"x.json.{durable.HOST}-{GONE}.tmp"
    for path in (*others, stale):
        path.write_bytes(b"")
    durable.write_atomic(tmp_path / "x.json", b"{}")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "x.json"])


def both(action: Callable[[int], Any]) -> list[Any]:
    """What `action` gives, or raises, in two threads that begin together; a lock holds between threads as well."""
    barrier = threading.Barrier(2)

    def run(number: int) -> Any:
        barrier.wait()
        try:
            return action(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def test_failed_members_are_tried_again_by_one_of_two(folder: Path) -> None:
    shards = []
    for number in range(12):
        groups = [make_group(2 * number), make_group(2 * number + 1)]
        groups[1].statuses[2], groups[1].rewards[2] = status.FAILED_REWARD, None
        groups[1].reasons = [None, None, "why"]
        for group in groups:
            stage(folder, group, "f")
        commit(folder, number, [group.key for group in groups], COLUMNS, "f")
        shards.append(PlannedShard(number, [PlannedGroup(g.key, g.prompt, g.seeds) for g in groups]))
    found = both(lambda _: generate._missing(folder, "f", shards, Console(quiet=True)))
    assert [type(todo) for todo in found] == [generate.Todo] * 2
    assert sum(todo.retried for todo in found) == 12
    assert len(list((folder / ".stage").glob("*.sample"))) == 12 and not list(folder.glob("shard-*"))


def test_of_two_recipes_of_one_name_one_is_refused(tmp_path: Path) -> None:
    for attempt in range(5):
        name = f"same-{attempt}"

        def begin(number: int, name: str = name) -> Path:
            made = Recipe(name=name, lake=str(tmp_path), evaluators=["ocr"], reward="1.0", seed=number)
            return open_dataset(made, {"seed": number, "arithmetic": 1})

        found = both(begin)
        assert {type(one) for one in found} == {UsageError, type(tmp_path)}
        refused = next(one for one in found if isinstance(one, UsageError))
        assert "It differs in seed: " in str(refused)


def test_a_shard_of_another_recipe_is_refused(folder: Path) -> None:
    group = make_group(0)
    stage(folder, group, "g")
    commit(folder, 0, [group.key], COLUMNS, "g")
    shard = PlannedShard(0, [PlannedGroup(group.key, group.prompt, group.seeds)])
    with pytest.raises(RunError, match=r"shard-000000.parquet: fingerprint g, expected f.*verify RECIPE --repair"):
        generate._missing(folder, "f", [shard], Console(quiet=True))


def test_repair_leaves_what_another_process_has_or_has_drawn_anew(folder: Path) -> None:
    for number in range(2):
        stage(folder, make_group(number), "f")
        commit(folder, number, [make_group(number).key], COLUMNS, "f")
    for number in range(2):
        tar = folder / f"shard-00000{number}.tar"
        tar.write_bytes(tar.read_bytes()[:-512])
    report = verify(folder)
    stage(folder, make_group(1), "f")
    commit(folder, 1, [make_group(1).key], COLUMNS, "f")  # drawn again meanwhile
    with claim(folder, 0), pytest.raises(RunError, match=r"shard-000000 are being drawn, .* 0 files were taken away"):
        repair(folder, report)
    assert len(list(folder.glob("shard-*"))) == 4
    assert repair(folder, verify(folder)) == 2
    assert [path.name for path in sorted(folder.glob("shard-*"))] == ["shard-000001.parquet", "shard-000001.tar"]
    assert verify(folder).problems == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_a_clear_error(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(file: Any, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)
    with pytest.raises(RunError, match=r"shard-000000.lock: cannot lock: .*copy the folder"), claim(folder, 0):
        pass


def test_a_disk_that_fails_is_a_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe_file: Path
) -> None:
    stage(folder, make_group(0), "f")
    commit(folder, 0, [make_group(0).key], COLUMNS, "f")

    def fails(*arguments: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fails)
        assert [p for _, p in verify(folder).problems if "shard-000000.tar: cannot read: Input/output error" in p]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(RunError, match="cannot write: Input/output error; the lake is valid"):
            durable.write_atomic(folder / "x", b"")
    with monkeypatch.context() as patch:  # wherever else: one line too
        patch.setattr(cli, "_folder", fails)
        assert cli.main(["verify", str(recipe_file)]) == 1
    assert capsys.readouterr().err == "error: a file: Input/output error\n"


def test_a_terminal_that_goes_away_stops_as_sigterm_does() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        inherited = signal.signal(number, signal.SIG_DFL)  # `nohup` ignores SIGHUP, and then it stays ignored
        before = signal.getsignal(number)
        with generate._stop_on_signals(Console(quiet=True)) as stop:
            os.kill(os.getpid(), number)
            assert stop.wait(5)
        assert signal.getsignal(number) is before
        signal.signal(number, inherited)

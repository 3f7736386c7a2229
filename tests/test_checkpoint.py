"""A run whose files are damaged: found, named, and repaired or gone round; never trained through."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from gpo_data.errors import RunError, UsageError
from gpo_data.lake.durable import HOST
from gpo_train import cli
from gpo_train.module import GPOModule
from gpo_train.run import Run, newest
from tests.conftest import killed_at
from tests.parts.training import equal, newest_of, steps_of, train, weights_of


def flip(path: Path, share: float = 0.5) -> None:
    """One bit of one byte, at that share of the file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture
def whole(here: Path) -> dict[str, torch.Tensor]:
    return weights_of(train(here, name="whole"))


def checkpoints(run: Run) -> list[Path]:
    return sorted((run.folder / "checkpoints").glob("*.ckpt"))


@pytest.mark.parametrize(
    "damage, every",
    [(flip, False), (flip, True), (cut, False), (empty, False)],
    ids=["flip", "flip all", "cut", "empty"],
)
def test_a_damaged_checkpoint_is_left_out(
    here: Path, whole: dict[str, torch.Tensor], damage: Callable[[Path], None], every: bool
) -> None:
    with killed_at(3):
        train(here)
    run = Run(Path("runs/a"))
    assert [path.name.split(".")[0] for path in checkpoints(run)] == ["step-00000002", "step-00000003"]
    for path in checkpoints(run) if every else checkpoints(run)[-1:]:
        damage(path)
    assert newest_of(run) is None if every else steps_of(run) == 2
    assert equal(weights_of(train(here)), whole)


def reverse(table: pa.Table) -> pa.Table:
    return table.set_column(
        table.schema.get_field_index("reward"), "reward", pa.array(table["reward"].to_pylist()[::-1])
    )


def drop(table: pa.Table) -> pa.Table:
    return table.filter(pc.not_equal(table["group_key"], table["group_key"][0]))


@pytest.mark.parametrize("damage", [flip, cut, empty, reverse, drop, Path.unlink], ids=lambda f: f.__name__)
def test_a_damaged_snapshot_is_made_again(here: Path, whole: dict[str, torch.Tensor], damage: Any) -> None:
    with killed_at(2):
        train(here)
    path = Path("runs/a/snapshot.parquet")
    if damage in (reverse, drop):
        pq.write_table(damage(pq.read_table(path)), path)  # with the old digest in it
    else:
        damage(path)
    assert equal(weights_of(train(here)), whole)


def test_a_snapshot_that_the_lake_does_not_give_again_is_an_error(here: Path) -> None:
    with killed_at(2):
        train(here)
    Path("runs/a/snapshot.parquet").unlink()
    next(Path("lake").glob("*/shard-000001.parquet")).unlink()
    with pytest.raises(RunError, match="snapshot.parquet: damaged, and the lake does not give the same again"):
        train(here)


@pytest.mark.parametrize(
    "damage", [flip, cut, empty, "another epoch's", Path.unlink], ids=lambda f: getattr(f, "__name__", f)
)
def test_damaged_reference_errors_are_asked_again_at_the_beginning_of_their_epoch(
    here: Path, whole: dict[str, torch.Tensor], damage: Any
) -> None:
    follows = ["--train.reference_update", "iteration"]  # each epoch has its own
    expected = weights_of(train(here, *follows, name="follows"))
    with killed_at(3):  # the first step of the second epoch, whose errors are on disk
        train(here, *follows)
    first, second = sorted(Path("runs/a/reference").glob("*.safetensors"))
    shutil.copy(first, second) if damage == "another epoch's" else damage(second)
    assert equal(weights_of(train(here, *follows)), expected)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_of_a_reference_that_never_moves_they_are_asked_again_at_any_time(here: Path, tuning: str) -> None:
    options = ["--train.tuning", tuning, "--train.reference", "stored", "--train.reference_update", "never"]
    expected = weights_of(train(here, *options, name="never"))
    asked = [load_file(path) for path in sorted(Path("runs/never/reference").glob("*"))]
    with killed_at(1):
        train(here, *options)
    first, second = sorted(Path("runs/a/reference").glob("*.safetensors"))
    flip(first)
    second.unlink()
    assert equal(weights_of(train(here, *options)), expected)
    again = [load_file(path) for path in sorted(Path("runs/a/reference").glob("*"))]
    assert all(equal(one, other) for one, other in zip(again, asked, strict=True))


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=lambda f: f.__name__)
def test_in_the_middle_of_an_epoch_they_are_an_error(here: Path, damage: Any) -> None:
    follows = ["--train.reference_update", "iteration"]
    with killed_at(1):
        train(here, *follows)
    damage(next(Path("runs/a/reference").glob("epoch-0000*")))
    with pytest.raises(RunError, match="no stored reference errors of small/text-.* gone or damaged"):
        train(here, *follows)


def test_a_damaged_run_json_is_named_and_hides_no_other_run(
    here: Path, whole: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads(Path("runs/whole/run.json").read_text())
    recipes = [
        facts["recipe"] | {key: 7} for key in ("name", "model", "revision", "policy", "task", "sampler", "train")
    ]
    recipes += [{}, facts["recipe"] | {"task": {"kind": None}}]
    for content in ("{}", "[]", "null", "{", *(json.dumps(facts | {"recipe": one}) for one in recipes)):
        Path("runs/bad").mkdir(exist_ok=True)
        Path("runs/bad/run.json").write_text(content)
        assert cli.main(["fit", str(here), "--run", "bad"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and "runs/bad/run.json" in said and said.count("\n") == 1
        assert newest("small", "offline").name == "whole"


def test_a_run_keeps_the_temporaries_of_ranks_that_live(tmp_path: Path) -> None:
    """Two ranks begin at once, and the one that holds the run clears what a killed process has left."""
    with subprocess.Popen(["true"]) as gone:
        pass
    living, left = (tmp_path / f"run.json.{HOST}-{pid}.tmp" for pid in (os.getppid(), gone.pid))
    living.touch()
    left.touch()
    with Run(tmp_path).claim():
        assert living.exists() and not left.exists()


def test_a_run_has_one_process_and_lies_in_its_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with killed_at(1):
        train(here)
    with Run(Path("runs/a")).claim(), pytest.raises(UsageError, match="run runs/a: another process trains it"):
        train(here)
    for name in ("../../x", "..", "a/b", "A", "a.b", ""):
        assert cli.main(["fit", str(here), "--run", name]) in ((0,) if not name else (2,))
    assert "--run: expected 1 to 80 letters" in capsys.readouterr().err and not Path("../x").exists()


@pytest.mark.parametrize(
    "key, value, ours",
    [
        ("gradient_clip_val", "0.5", "train.max_grad_norm"),
        ("accumulate_grad_batches", "2", "train.groups_per_step"),
        ("precision", "bf16-true", "train.precision"),
        ("max_epochs", "3", "train.epochs"),
        ("callbacks", "[x]", "none; use a module of your own in a Trainer"),
    ],
)
def test_options_of_lightning_that_are_ours_name_our_key(
    here: Path, capsys: pytest.CaptureFixture[str], key: str, value: str, ours: str
) -> None:
    assert cli.main(["fit", str(here), "--run", "a", f"--train.trainer.{key}", value]) == 2
    said = capsys.readouterr().err
    assert f"train.trainer.{key}: expected {ours}" in said and said.count("\n") == 1 and not Path("runs/a").exists()


@pytest.mark.parametrize(
    "option", [["max_steps", "1"], ["limit_train_batches", "1"], ["fast_dev_run", "true"], ["overfit_batches", "1"]]
)
def test_a_trial_finishes_nothing(here: Path, capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    command = ["fit", str(here), "--run", "a", f"--train.trainer.{option[0]}", option[1]]
    for _ in range(2):
        assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert f"a trial ({option[0]}): run a-trial" in said and "trial: " in said
    assert not Path("runs/a").exists() and not Path("runs/a-trial/policy").exists()
    assert json.loads(Path("runs/a-trial/run.json").read_text())["state"] == "trial"


def test_a_closed_terminal_ends_a_run_with_a_checkpoint(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = GPOModule.training_step

    def closed(self: Any, batch: Any, index: int) -> None:
        if self.global_step == 3:
            signal.raise_signal(signal.SIGHUP)
        step(self, batch, index)

    monkeypatch.setattr(GPOModule, "training_step", closed)
    assert cli.main(["fit", str(here), "--run", "a", "--train.checkpoint_steps", "100"]) == 130
    assert steps_of(Run(Path("runs/a"))) == 4


def test_a_checkpoint_does_not_pass_through_the_temporary_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    assert train(here).manifest().state == "finished"


@pytest.mark.slow
def test_the_processes_that_read_ahead_end_with_a_killed_run(here: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpo_train.cli", "fit", str(here), "--run", "a", "--train.workers", "1"]
    command += ["--train.epochs", "500"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while newest_of(Run(tmp_path / "runs/a")) is None:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    for _ in range(100):
        alive = subprocess.run(["ps", "-o", "pid=,stat=,args=", "-g", str(process.pid)], capture_output=True, text=True)
        if not [line for line in alive.stdout.splitlines() if " Z" not in line]:
            return
        time.sleep(0.1)
    pytest.fail(f"still there: {alive.stdout}")

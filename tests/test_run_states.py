"""A run between its beginning and its end: a trial, a stop between two phases, a run that goes on."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpo_data import recipe
from gpo_data.errors import Interrupted, UsageError
from gpo_data.lake.durable import HOST
from gpo_data.signals import same_signals
from gpo_train import cli
from gpo_train.average import average
from gpo_train.checkpoint import Checkpoints
from gpo_train.evaluation import compare
from gpo_train.evaluation.prompts import choose
from gpo_train.module import GPOModule
from gpo_train.online import callback
from gpo_train.online.iterations import history
from gpo_train.online.rollout import Rollout
from gpo_train.online.watch import watch
from gpo_train.run import newest
from tests.parts.online import here as here
from tests.parts.online import online, quiet, tars
from tests.parts.training import equal, weights_of

TRIAL = ["--train.trainer.max_steps", "1", "--online.iterations", "1"]


def test_a_trial_takes_no_runs_place(here: Path) -> None:
    run = online(here, "--online.iterations", "1", name="a-trial")
    drawn = tars("a-trial-it0000")
    for state in ("finished", "training"):
        run.note(state=state)
        with pytest.raises(UsageError, match=rf"expected none or an earlier trial there, found a run \({state}\)"):
            online(here, *TRIAL, name="a")
    shutil.copytree(run.folder, "runs/b-trial")
    Path("runs/b-trial/run.json").unlink()
    with pytest.raises(UsageError, match="no run.json there"):
        online(here, *TRIAL, name="b")
    assert run.policy.is_dir() and tars("a-trial-it0000") == drawn != []


def test_a_trial_hides_no_run(here: Path) -> None:
    run = online(here, "--online.iterations", "1", name="a")
    trial = online(here, *TRIAL, name="later")
    assert trial.name == "later-trial" and newest("small", "online").folder == run.folder
    with pytest.raises(UsageError, match="a trial has no policy"):
        trial.expect_policy()
    watch(recipe.load(here), trial, quiet(), follow=True)  # which has an end


def test_nohup_holds_for_training_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = GPOModule.training_step

    def closed(self: Any, batch: Any, index: int) -> None:
        signal.raise_signal(signal.SIGHUP)
        step(self, batch, index)

    monkeypatch.setattr(GPOModule, "training_step", closed)
    with same_signals():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert online(here, "--online.iterations", "1").manifest().state == "finished"


def test_a_stop_between_training_and_drawing_draws_nothing_more(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = online(here, "--online.iterations", "2", name="whole")
    with monkeypatch.context() as patched, same_signals():
        opened = Rollout._open

        def stopped(self: Rollout, wanted: Any) -> Any:
            found = opened(self, wanted)
            if wanted.name == "a-it0001":
                signal.raise_signal(signal.SIGTERM)
            return found

        patched.setattr(Rollout, "_open", stopped)
        with pytest.raises(Interrupted):
            online(here, "--online.iterations", "2")
    assert tars("a-it0000") and not tars("a-it0001")
    assert equal(weights_of(online(here, "--online.iterations", "2")), weights_of(whole))


def test_a_run_that_goes_on_has_no_policy_until_its_end(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = online(here, "--online.iterations", "1")
    chosen = choose(recipe.load(here, ["--eval.prompts", "1"]), set(), run.folder)
    asked: list[list[int]] = []

    def against_base(recipe: Any, name: str, weights: dict[int, Path], *rest: Any) -> list[Any]:
        asked.append(sorted(weights))
        return []

    def no_step(self: Any, batch: Any, index: int) -> None:
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(GPOModule, "training_step", no_step)
        with pytest.raises(Interrupted):
            online(here, "--online.iterations", "2")
    assert run.policy.is_dir() and run.manifest().state == "training"
    with pytest.raises(UsageError, match=r"its policy is of an earlier end \(training\); `gpo-train fit` finishes it"):
        run.expect_policy()
    assert cli.main(["eval", str(here), "--run", "a", "--mode", "online"]) == 2
    monkeypatch.setattr(compare, "against_base", against_base)
    workers: Any = None
    for ended in (False, True):
        compare.points(recipe.load(here), run, chosen, 1, quiet(), workers, ended)
    assert asked == [[1], [1, 2]]
    online(here, "--online.iterations", "2").expect_policy()


def test_seconds_of_an_iteration_are_counted_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes one second; the run is killed between the iteration's last note and its checkpoint."""
    ticks = itertools.count()
    monkeypatch.setattr(callback, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    options = ["--online.iterations", "1", "--online.epochs_per_iteration", "2"]
    with monkeypatch.context() as patched:
        saved = Checkpoints.on_train_batch_end

        def killed(self: Checkpoints, trainer: Any, *rest: Any) -> None:
            if trainer.current_epoch == 1 and trainer.is_last_batch:
                raise Interrupted
            saved(self, trainer, *rest)

        patched.setattr(Checkpoints, "on_train_batch_end", killed)
        with pytest.raises(Interrupted):
            online(here, *options)
    run = online(here, *options)
    (only,) = history(run.folder)
    assert only.seconds["train"] == run.manifest().steps == 4


def test_a_mean_that_was_killed_leaves_nothing_once_it_is_made(here: Path) -> None:
    runs = [online(here, "--online.iterations", "1", "--seed", seed, name=f"s{seed}") for seed in "01"]
    gone, lives = (Path(f"runs/mean.{HOST}-{pid}.tmp") for pid in (2**22 + 1, os.getppid()))
    mine = Path("runs/mean.old.tmp")  # no process's
    for folder in (gone, lives, mine):
        (folder / "policy").mkdir(parents=True)
    assert average(runs, name="mean").policy.is_dir()
    assert sorted(Path("runs").glob("mean.*")) == sorted([lives, mine])
    runs[1].note(weights_digest="0" * 16)
    with pytest.raises(UsageError, match="run s1 began with another model than s0"):
        average(runs, name="other")

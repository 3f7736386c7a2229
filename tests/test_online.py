"""Online mode on real parts: what the policy draws, killed, resumed, compared with `make shards` and with offline."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from gpo_data import recipe
from gpo_data.errors import Interrupted, RunError, UsageError
from gpo_data.generation.generate import draw
from gpo_data.generation.redraw import redraw
from gpo_data.generation.worker import Generator
from gpo_data.lake import catalog
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.shard import dataset_folder
from gpo_data.recipe import Task
from gpo_data.tasks import TASKS
from gpo_train import fit as fit_module
from gpo_train.data import snapshot_of
from gpo_train.fit import fit
from gpo_train.online.callback import OnlineRegeneration
from gpo_train.online.iterations import Iteration, from_file, history
from gpo_train.run import Run
from gpo_train.settings import train_settings, trial_options
from tests.conftest import killed_at
from tests.parts.online import here as here
from tests.parts.online import losses, online, quiet, tars
from tests.parts.training import equal, weights_of

GRID = ["--online.grid_every", "1"]


def test_without_learning_it_writes_what_make_shards_writes(here: Path) -> None:
    draw(recipe.load(here), quiet())
    run = online(here, "--train.learning_rate", "0", "--online.iterations", "2")
    assert tars("a-it0000") == tars("small") != []
    # The second iteration is the next prompts with the next seed, drawn by weights that did not move.
    by_hand = Iteration(run.folder, 1).recipe(recipe.load(here), "base")
    draw(dataclasses.replace(by_hand, name="b"), quiet())
    assert tars("a-it0001") == tars("b") != tars("a-it0000")
    prompts = dict(
        catalog.connect("lake").execute("SELECT dataset, count(DISTINCT prompt) FROM members GROUP BY 1").fetchall()
    )
    assert prompts == {"small": 4, "a-it0000": 4, "a-it0001": 4, "b": 4}


def test_rollouts_may_have_fewer_steps_than_evaluation(here: Path) -> None:
    recipe_file = recipe.load(here)
    assert recipe_file.sampler.num_inference_steps == 2
    run = online(here, "--online.iterations", "1", "--online.num_inference_steps", "1")
    draw(recipe.load(here, ["--name", "by-hand", "--sampler.num_inference_steps", "1"]), quiet())
    draw(recipe_file, quiet())
    assert tars("a-it0000") == tars("by-hand") != tars("small")
    fields = read_manifest(dataset_folder("lake", "a-it0000")).fields
    assert fields["sampler.num_inference_steps"] == 1 and run.manifest().recipe["sampler"]["num_inference_steps"] == 2
    folder, as_drawn = dataset_folder("lake", "a-it0000"), ["--name", "a-it0000", "--sampler.num_inference_steps", "1"]
    assert all(row.agrees for row in redraw(recipe.load(here, as_drawn), folder, 3))
    with pytest.raises(UsageError, match="online.num_inference_steps: 1 there, None now"):
        online(here, "--online.iterations", "2")


def test_the_policy_draws_the_next_iteration_and_offline_training_on_one_is_the_same(here: Path) -> None:
    draw(recipe.load(here), quiet())
    run = online(here, "--train.learning_rate", "1e-3")
    assert [one.iteration for one in history(run.folder)] == [0, 1, 2]
    by_hand = Iteration(run.folder, 1).recipe(recipe.load(here), "base")
    draw(dataclasses.replace(by_hand, name="base"), quiet())
    assert tars("a-it0001") != tars("base")
    draw(dataclasses.replace(by_hand, name="again", policy=str(Iteration(run.folder, 1).policy)), quiet())
    assert tars("a-it0001") == tars("again")
    offline = fit(
        recipe.load(here, ["--name", "a-it0000", "--train.epochs", "1", "--train.learning_rate", "1e-3"]),
        "off",
        quiet(),
    )
    assert losses(offline) == losses(run)[:2] and len(losses(run)) == 6


@pytest.mark.parametrize("reference", ["stored", pytest.param("frozen", marks=pytest.mark.slow)])
def test_offline_training_on_its_iterations_in_turn_is_the_run_without_the_drawing(here: Path, reference: str) -> None:
    extra = ["--train.learning_rate", "1e-3", "--train.reference", reference]
    whole = online(here, *extra)
    replay = [
        *extra,
        "--train.datasets",
        "a-it*",
        "--train.sequential",
        "true",
        "--train.epochs",
        "3",
        "--train.reference_update",
        "iteration",
    ]
    for step in (2, 3):  # after an iteration's last step, and in the middle of one
        with killed_at(step):
            fit(recipe.load(here, replay), "off", quiet())
    again = fit(recipe.load(here, replay), "off", quiet())
    assert equal(weights_of(again), weights_of(whole))
    together = fit(recipe.load(here, [*replay, "--train.sequential", "false", "--train.epochs", "1"]), "all", quiet())
    assert len(losses(together)) == 6 and together.manifest().snapshot["groups"] == "12"
    for name, some in (("empty", "false"), ("few", "member < 0 OR group_key LIKE '%0'")):  # of one: no turn of its own
        there = [*replay, "--where", f"dataset <> 'a-it0001' OR {some}", "--train.epochs", "2"]
        left = fit(recipe.load(here, there), name, quiet())
        assert len(losses(left)) == 4 and left.manifest().snapshot["groups"] == {"empty": "8", "few": "9"}[name]
        assert losses(left)[:2] == losses(whole)[:2]
    with pytest.raises(UsageError, match="datasets a-it0000, a-it0001, a-it0002: no group .* where: false"):
        fit(recipe.load(here, [*replay, "--where", "false"]), "no", quiet())
    with pytest.raises(UsageError, match="train.groups_per_step: 2 groups a step, and no dataset has more than 1 with"):
        fit(recipe.load(here, [*replay, "--where", "group_key LIKE '%0'"]), "one", quiet())
    with pytest.raises(UsageError, match="no dataset of lake matches 'b-it.*there are: a-it0000, a-it0001, a-it0002"):
        fit(recipe.load(here, ["--train.datasets", "b-it*"]), "none", quiet())
    with pytest.raises(UsageError, match="online trains on what it draws; leave them out"):
        online(here, "--train.datasets", "a-it*", name="none")


@pytest.mark.parametrize("tuning", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_killed_while_drawing_and_while_training_equals_never_killed(
    here: Path, monkeypatch: pytest.MonkeyPatch, tuning: str
) -> None:
    extra = [
        "--train.tuning",
        tuning,
        "--train.ema_decay",
        "0.5",
        "--online.rollout_policy",
        "ema",
        "--online.replay",
        "2",
        "--online.epochs_per_iteration",
        "2",
    ]
    whole = online(here, *extra, name="whole")
    stage = Generator._stage
    drawn: list[str] = []

    def noted(self: Any, group: Any) -> None:
        stage(self, group)
        drawn.append(f"{self.folder.name}/{group.key}")

    for step in (1, 5):  # in the middle of the first iteration, and of a later one
        with killed_at(step), monkeypatch.context() as patch:
            patch.setattr(Generator, "_stage", noted)
            online(here, *extra, name="broken")

    def stopped(self: Any, group: Any) -> None:
        noted(self, group)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "_stage", stopped)
        with pytest.raises(Interrupted):
            online(here, *extra, name="broken")
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "_stage", noted)
        broken = online(here, *extra, name="broken")
    assert len(drawn) == len(set(drawn)) == 12  # each group of three iterations once
    for i in range(3):
        assert tars(f"broken-it{i:04d}") == tars(f"whole-it{i:04d}")
    assert equal(weights_of(broken), weights_of(whole))


def test_killed_after_the_last_step_nothing_more_is_drawn(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = ["--train.ema_decay", "0.5", "--online.iterations", "2"]
    whole = online(here, *extra, name="whole")

    def killed(*rest: Any, **named: Any) -> None:
        raise ValueError("killed")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="killed"):
        patch.setattr(fit_module, "save_policy", killed)
        online(here, *extra, name="broken")
    broken = online(here, *extra, name="broken")
    assert equal(weights_of(broken), weights_of(whole)) and len(history(broken.folder)) == 2
    assert not dataset_folder("lake", "broken-it0002").exists()


def test_a_finished_run_goes_on_with_more_iterations(here: Path) -> None:
    extra = ["--online.group_size", "2", "--train.ema_decay", "0.5"]
    whole = online(here, *extra, name="whole")
    online(here, *extra, "--online.iterations", "2", name="longer")
    assert len(history(Path("runs/longer"))) == 2
    longer = online(here, *extra, name="longer")
    assert len(history(longer.folder)) == 3 and longer.manifest().steps == whole.manifest().steps
    assert equal(weights_of(longer), weights_of(whole))
    sizes = catalog.connect("lake").execute("SELECT DISTINCT n FROM groups").fetchall()
    assert sizes == [(2,)]


def test_prompts_travel_with_all_that_a_file_says_of_them(here: Path) -> None:
    rows = [
        {"prompt": f"{number} things", "number": number, "object": thing, "class": "animal", "target": 7}
        for number, thing in enumerate(("dog", "cat", "bird", "horse"), 2)
    ]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = ["--task.kind", "count", "--task.prompts", "own.jsonl", "--task.split", "all", "--task.num_prompts", "null"]
    named = ["--task.target_column", "number", "--task.class_column", "object", "--evaluators", "[blobs]"]
    reward = ["--reward", "dark_fraction + target_count", "--online.iterations", "1", "--online.prompts", "2"]
    run = online(here, *file, *named, *reward, *GRID)
    columns = "target_class, target_count, class, row_target"
    drawn = catalog.connect("lake", ["a-it0000"]).execute(f"SELECT DISTINCT {columns} FROM members ORDER BY 2")
    assert drawn.fetchall() == [("dog", 2, "animal", 7), ("cat", 3, "animal", 7)]
    assert (run.folder / "iterations/it0000/grid.png").is_file()
    older = Iteration(run.folder, 0).folder / "prompts.jsonl"
    older.write_text('{"prompt": "2 things", "class": "dog", "target": 2}\n')
    (prompt,) = TASKS["count"].prompts(from_file(Task("count"), older), 0)
    assert prompt.target == {"target_class": "dog", "target_count": 2}


def test_a_grammar_without_an_end_has_its_grid(here: Path) -> None:
    run = online(here, "--task.num_prompts", "null", "--online.prompts", "2", "--online.iterations", "1", *GRID)
    assert (run.folder / "iterations/it0000/grid.png").is_file()


def test_what_a_user_can_do_wrong(here: Path) -> None:
    with pytest.raises(UsageError, match=r"train.reference: stored: a base that never moves .* use `frozen`"):
        online(here, "--train.reference_update", "never")
    with pytest.raises(UsageError, match="online.rollout_policy: ema: there is no average"):
        online(here, "--online.rollout_policy", "ema")
    with pytest.raises(UsageError, match=r"online.pool: 2: expected at least 3 \(online.prompts\), which are chosen"):
        online(here, "--online.pool", "2", "--online.prompts", "3")
    with pytest.raises(UsageError, match=r"online.pool: 2: expected at least 5 \(task.num_prompts, as online.prompts"):
        online(here, "--online.pool", "2", "--online.prompts", "null", "--task.num_prompts", "5")
    with pytest.raises(UsageError, match=r"online.keep_last: expected at least online.replay \(3\), found 2"):
        online(here, "--online.keep_last", "2", "--online.replay", "3")
    with pytest.raises(UsageError, match=r"unknown key 'online.iteration'; did you mean 'online.iterations'"):
        online(here, "--online.iteration", "2")
    assert not Path("runs/a").exists()
    assert train_settings(recipe.load(here), "online").epochs == 3
    assert train_settings(recipe.load(here), "offline").reference_update == "never"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_draw_what_one_does(here: Path, strategy: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # everywhere: with more of them sums are made in another order, which are other bytes
    try:
        alone = weights_of(online(here, name="one"))
    finally:
        torch.set_num_threads(threads)
    command = [
        sys.executable,
        "-m",
        "gpo_train.cli",
        "fit",
        str(here),
        "--mode",
        "online",
        "--run",
        "two",
        "--train.trainer.devices",
        "2",
        "--train.trainer.strategy",
        strategy,
        "--train.trainer.accelerator",
        "cpu",
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    environment["OMP_NUM_THREADS"] = "1"
    subprocess.run(command, check=True, timeout=500, env=environment)
    assert tars("two-it0000") == tars("one-it0000")
    assert Run(Path("runs/two")).manifest().ranks == 2
    far = [[iteration.distance for iteration in history(Path("runs") / name)] for name in ("one", "two")]
    assert far[1] == pytest.approx(far[0], rel=1e-2)
    two = weights_of(Run(Path("runs/two")))
    for name in alone:
        torch.testing.assert_close(alone[name], two[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_lines_in_a_log_and_bars_on_a_terminal(
    here: Path, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    more = ["--train.trainer.enable_progress_bar", "true"]
    for iterations in ("2", "3"):  # the second time it goes on from a checkpoint
        made = recipe.load(here, ["--online.iterations", iterations, *more])
        fit(made, "a", Console(force_terminal=terminal, highlight=False), "online")
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if line.startswith("iteration ") and "reward" in line]
    assert len(said) == 3  # each at the beginning of a line, and so to be found with grep
    if terminal:
        assert sum("left=0:0" in line for line in lines) >= 3
    else:
        steps = [line for line in lines if line.startswith("step ")]
        assert {"2/4", "4/4", "6/6"} <= {line.split()[1] for line in steps}
        assert [line for line in steps if "loss" not in line or "left 0:0" not in line] == []


def test_progress_counts_the_steps_of_epochs_of_different_length(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of the second iteration's four groups are dead: one step in the place of two."""
    made = recipe.load(here, ["--task.num_prompts", "6"])
    dead = ", ".join(f"'{prompt.target['target']}'" for prompt in TASKS["text"].prompts(made.task, made.seed)[4:])
    more = ["--train.trainer.enable_progress_bar", "true", "--reward", f"entropy * (target NOT IN ({dead}))::int"]
    fit(recipe.load(here, ["--online.iterations", "2", *more]), "a", Console(highlight=False), "online")
    steps = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert "2/4" in steps and steps[-1] == "3/3"


def test_a_run_stops_by_the_distance_of_iterations_before(here: Path) -> None:
    """Not by that of the one that it trains on, which a resumed run finds noted and one never killed does not."""
    run = online(here, "--online.iterations", "2", "--train.learning_rate", "1e-3")
    rule = OnlineRegeneration(recipe.load(here, ["--online.stop_distance", "0.5"]), folder=run.folder)
    Iteration(run.folder, 1).note(distance=1.0)
    assert rule._reason_to_stop(1, 4) is None
    Iteration(run.folder, 0).note(distance=1.0)
    assert "online.stop_distance: 0.5" in str(rule._reason_to_stop(1, 4))


def test_what_asks_no_reference_has_no_distance(here: Path) -> None:
    run = online(here, "--online.iterations", "1", "--train.loss", "rwr")
    assert history(run.folder)[0].distance is None
    for other in (["--train.loss", "best_of_n"], ["--train.objective", "sft"]):
        refused = recipe.load(here, ["--online.stop_distance", "0.03", *other])
        with pytest.raises(UsageError, match=r"online.stop_distance: 0.03: train.\w+: \w+ asks no reference"):
            train_settings(refused, "online")


def test_sft_learns_from_the_same_members_online_as_offline(here: Path) -> None:
    sft = ["--train.objective", "sft", "--train.reference", "stored", "--train.sft_reward"]
    online(here, "--online.iterations", "1", *sft, "0.4", "--train.groups_per_step", "1")
    rewards = snapshot_of(recipe.load(here, [*sft, "0.4"]), "a-it0000")["reward"].to_pylist()
    assert rewards and min(rewards) >= 0.4
    with pytest.raises(RunError, match="nothing left to learn: 0 groups"):
        online(here, "--online.iterations", "1", *sft, "5", name="b")
    with pytest.raises(UsageError, match=r"train.sft_reward: 5.0: no member of dataset a-it0000 has as much"):
        fit(recipe.load(here, ["--name", "a-it0000", *sft, "5"]), "c", quiet())
    assert not Path("runs/c").exists()  # the name stays free


def test_a_trial_is_begun_anew_whatever_it_drew(here: Path) -> None:
    draw(recipe.load(here), quiet())
    online(here, "--online.iterations", "1")
    kept = tars("a-it0000")
    trial = ["--online.iterations", "2", "--train.trainer.max_steps", "1"]
    online(here, *trial)
    online(here, *trial, "--online.group_size", "3")
    assert history(Path("runs/a-trial"))[0].images == 12 and tars("small") and tars("a-it0000") == kept
    every = ["--train.trainer.limit_train_batches", "1.0", "--train.trainer.max_steps", "-1"]
    assert trial_options(recipe.load(here, every)) == []


def test_a_run_that_is_further_than_it_is_to_go_says_so(here: Path) -> None:
    """Begun with two iterations, stopped in the second, and asked for one."""
    run = online(here, "--online.iterations", "2")
    run.note(state="training")
    with pytest.raises(UsageError, match="has trained 2 iterations: expected --online.iterations 2 or more, found 1"):
        online(here, "--online.iterations", "1")
    assert online(here, "--online.iterations", "2").manifest().state == "finished"

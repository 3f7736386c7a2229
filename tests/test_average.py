"""The mean of policies: of an online run's iterations, of runs, and further from the base than any of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpo_data.errors import UsageError
from gpo_data.models.load import LORA_FILE
from gpo_data.recipe import load
from gpo_train import cli
from gpo_train.average import average
from gpo_train.evaluation.trained import trained_keys
from gpo_train.online.iterations import Iteration
from gpo_train.run import Averaged, Run, newest
from gpo_train.share import card
from tests.parts.online import here as here
from tests.parts.online import online
from tests.parts.training import weights_of

SMALL = ["--eval.prompts", "2", "--eval.group_size", "2"]
FAST = ["--online.iterations", "2", "--train.learning_rate", "1e-3"]


def test_iterations_are_averaged(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    online(here, *FAST, name="fresh")
    assert cli.main(["average", str(here), "--last", "2"]) == 0
    of = [load_file(next(Iteration(Path("runs/fresh"), i).policy.rglob("*.safetensors"))) for i in (0, 1)]
    mean = weights_of(Run(Path("runs/fresh-mean2")))
    moved = [name for name in mean if not torch.equal(of[0][name], of[1][name])]
    assert moved and mean.keys() == of[0].keys()
    for name in moved:
        assert torch.equal(mean[name], ((of[0][name].double() + of[1][name].double()) / 2).to(mean[name].dtype))
    assert cli.main(["eval", str(here), "--run", "fresh-mean2", *SMALL]) == 0
    assert newest("small", "online").name == "fresh"
    capsys.readouterr()
    for arguments, message in (
        (["--run", "fresh", "--last", "2"], "is there already"),
        (["--run", "fresh", "--last", "3"], "--last: expected 2 to 2"),
        (["--run", "fresh-mean2", "--last", "2"], "expected an online run"),
        (["--run", "fresh"], "expected several runs, --last N or --scale S"),
        (["--run", "fresh", "fresh"], "--run: expected each run once"),
        (["--run", "fresh", "--scale", "nan"], "--scale: expected a number above 0, found nan"),
        (["--run", "fresh", "none"], "no run.json there"),
    ):
        assert cli.main(["average", str(here), *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_runs_are_averaged_and_taken_further_from_their_base(here: Path) -> None:
    runs = [online(here, *FAST, "--train.tuning", "full", "--seed", seed, name=f"s{seed}") for seed in "01"]
    assert cli.main(["average", str(here), "--run", "s0", "s1", "--scale", "1.5", "--out", "far"]) == 0
    made = Run(Path("runs/far"))
    model = Path(load(here).model)
    base = load_file(next((model / "transformer").glob("*.safetensors")))
    one, two, far = (weights_of(run) for run in (*runs, made))
    assert any(not torch.equal(one[name], two[name]) for name in one)
    for name, value in far.items():
        mean = (one[name].double() + two[name].double()) / 2
        assert torch.allclose(value.double(), base[name].double() + 1.5 * (mean - base[name].double()), atol=1e-7)
    # What either was trained on is left out of the evaluation.
    recipe = load(here)
    keys = [trained_keys(recipe, run) for run in runs]
    assert trained_keys(recipe, made) == keys[0] | keys[1]
    assert cli.main(["eval", str(here), "--run", "far", *SMALL]) == 0
    assert made.manifest().mode == "average" and average(runs).name == "s0-mean2"
    assert average(runs, scale=0.5).name == "s0-mean2-x0-5"
    assert "the mean of s0, s1, 1.5 times as far from it, trained by group preferences" in card(made, "mit")
    assert average([runs[0], made], name="again").manifest().averaged == Averaged(runs=["s0", "far"])


def test_of_loras_the_products_are_averaged(here: Path) -> None:
    lora = ["--train.tuning", "lora", "--train.lora_rank", "2"]
    runs = [online(here, *FAST, *lora, "--seed", seed, name=f"l{seed}") for seed in "01"]

    def moves(run: Run) -> dict[str, torch.Tensor]:
        layers = load_file(run.policy / LORA_FILE)
        ups = [name for name in layers if "lora_B" in name]
        return {name: layers[name].double() @ layers[name.replace("lora_B", "lora_A")].double() for name in ups}

    one, two, far = (moves(run) for run in (*runs, average(runs, scale=2.0)))
    assert max(float(value.abs().max()) for value in far.values()) > 0
    for name, value in far.items():
        assert torch.allclose(value, one[name] + two[name], atol=1e-6), name
    assert cli.main(["eval", str(here), "--run", "l0-mean2-x2", *lora, *SMALL]) == 0
    full = online(here, *FAST, "--train.tuning", "full", name="f0")
    assert cli.main(["average", str(here), "--run", "l0", full.name]) == 2


def test_a_mean_of_older_runs_is_known(here: Path) -> None:
    online(here, "--online.iterations", "2", name="a")
    assert cli.main(["average", str(here), "--run", "a", "--last", "2"]) == 0
    path = Path("runs/a-mean2/run.json")
    now = json.loads(path.read_text())
    path.write_text(json.dumps(now | {"averaged": {"run": "a", "iterations": [0, 1]}}))
    recipe = load(here)
    assert "the mean of a in their last 2 iterations, trained" in card(Run(path.parent), "mit")
    assert trained_keys(recipe, Run(path.parent)) == trained_keys(recipe, Run(Path("runs/a"))) != set()
    path.write_text(json.dumps(now | {"averaged": {"run": "a", "iterations": [0]}}))
    with pytest.raises(UsageError, match="run.json: damaged: it lacks averaged.runs"):
        trained_keys(recipe, Run(path.parent))

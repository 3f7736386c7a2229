"""Every verb for every family, by the command line, on tiny random weights: from a recipe to what diffusers opens.

What the plain pipeline draws from the exported files is what our own model draws with the run's policy. One family
runs in the fast suite, the others with `make test-slow`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import diffusers
import pytest
import torch

import gpo_data.cli
import gpo_train.cli
from gpo_data import models, recipe
from gpo_train.run import RUNS, Run
from tests.parts.families import FAMILIES, PROMPTS, SAMPLER, Family, build

# How groups come about: `gpo-train fit`'s own arguments.
MODES = {"offline": [], "online": ["--mode", "online", "--online.iterations", "2", "--online.grid_every", "0"]}
FAST = "sdxl"


@pytest.fixture(
    scope="module",
    params=[name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def made(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for the family, its dataset drawn by `shards`."""
    folder = tmp_path_factory.mktemp("verbs")
    content = {
        "model": str(family.folder),
        "lake": str(folder / "lake"),
        "group_size": 3,
        "groups_per_shard": 2,
        "task": {"kind": "text", "num_prompts": 3},
        "sampler": {**dataclasses.asdict(SAMPLER), **family.settings, "batch_size": 4, "text_encoders": "offload"},
        "evaluators": ["ocr"],
        "ocr": {"mode": "recognition"},
        "reward": "0.5 + 0.5 * text_edit(target, ocr_text) - 0.5 * dark_fraction",
        "train": {
            "timesteps_per_image": 2,
            "num_inner_epochs": 1,
            "epochs": 1,
            "learning_rate": 1e-3,
            "lora_rank": 2,
            "loggers": ["csv"],
            "gradient_checkpointing": True,
            "trainer": {"enable_progress_bar": False},
        },
        "eval": {"prompts": 2, "group_size": 2},
    }
    path = folder / f"{family.name}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    assert gpo_data.cli.main(["shards", str(path)]) == 0
    return path


def test_the_verbs_of_a_dataset(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpo_data.cli.main(["audit", str(made)]) == 0
    assert gpo_data.cli.main(["measure", str(made), "--evaluator", "color"]) == 0
    assert gpo_data.cli.main(["show", str(made)]) == 0
    capsys.readouterr()
    assert gpo_data.cli.main(["sql", str(made), "SELECT count(color_seen) FROM members", "--format", "csv"]) == 0
    assert capsys.readouterr().out.split()[-1] == "9"
    assert gpo_data.cli.main(["verify", str(made), "--redraw", "2"]) == 0
    said = capsys.readouterr().out
    assert "2 shards, 3 groups, 9 members (0 failed), 0 problems" in said and said.count("difference of latents") == 2


# LoRA as on a GPU: a base in bfloat16, adapters in float32.
@pytest.mark.parametrize(("tuning", "precision"), [("full", "float32"), ("lora", "bfloat16")])
@pytest.mark.parametrize("mode", MODES)
def test_the_verbs_of_a_run(
    family: Family, made: Path, mode: str, tuning: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{mode}-{tuning}"
    options = ["--train.tuning", tuning, "--train.precision", precision, *MODES[mode]]
    assert gpo_train.cli.main(["fit", str(made), "--run", name, *options]) == 0
    run = Run(tmp_path / RUNS / name)
    assert run.manifest().state == "finished"
    assert gpo_train.cli.main(["eval", str(made), "--run", name]) == 0
    assert json.loads((run.folder / "eval.json").read_text())["n"] == 4
    assert gpo_train.cli.main(["export", str(made), "--run", name, "--out", str(tmp_path / "out")]) == 0

    ours = models.load(family.folder, recipe.load(made).sampler)
    base = ours.draw(ours.encode(PROMPTS), [1, 2])
    models.load_policy_weights(ours, run.policy)
    drawn = ours.draw(ours.encode(PROMPTS), [1, 2])
    if tuning == "lora":
        plain = family.plain()
        plain.load_lora_weights(tmp_path / "out")
        merge = ["--merge", "--out", str(tmp_path / "merged")]
        assert gpo_train.cli.main(["export", str(made), "--run", name, *merge]) == 0
        merged = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        torch.testing.assert_close(drawn, ours.unpack(family.call(merged, "latent")), rtol=0, atol=1e-4)
    else:
        plain = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(drawn, ours.unpack(family.call(plain, "latent")), rtol=0, atol=1e-5)
    assert (drawn - base).abs().max() > 1e-4  # it learnt something

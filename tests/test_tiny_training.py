"""Training the tiny world in stages: its optimizer, resuming, and its recipes."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gpo_data.errors import UsageError
from gpo_data.tiny import PIPELINE_DIR, YOLO_WEIGHTS, train_autoencoder, train_transformer, train_yolo, training
from gpo_data.tiny.__main__ import main
from gpo_data.tiny.muon import BatchedMuon
from gpo_data.tiny.pipeline import ZeroRows, new_transformer
from gpo_data.tiny.recipe import load
from gpo_data.tiny.render import World
from gpo_data.tiny.train_autoencoder import new_autoencoder

RECIPES = Path(__file__).parents[1] / "recipes"
TINY = """
threads: 1
autoencoder:
  {seed: 1, batch: 2, text_share: 0.7, letter: Q, stages: [
    {world: {fonts: 1, sizes: 1, placement: columns, jitter: 0, without: ""}, minutes: 1.0e-4, lr: 1.0e-3, decay: 0.5},
    {world: {fonts: 3, sizes: 2, placement: free, jitter: 4, without: ""}, minutes: 1.0e-4, lr: 1.0e-3, decay: 0.5}]}
decoder: {seed: 2, minutes: 1.0e-4, batch: 2, lr: 1.0e-3, decay: 0.5, text_share: 0.7, letter: Q}
yolo: {seed: 1, pictures: 8, epochs: 1, imgsz: 32, batch: 4, lr: 1.0e-3}
transformer:
  {seed: 1, layers: 1, heads: 2, batch: 1, ema: 0.998, dropout: 0.1, text_share: 0.5, stages: [
    {world: {fonts: 1, sizes: 1, placement: columns, jitter: 0, without: ""},
     minutes: 1.0e-4, lr: 0.001, lr_adamw: 0.001, decay: 1},
    {world: {fonts: 3, sizes: 2, placement: columns, jitter: 2, without: ""},
     minutes: 1.0e-4, lr: 0.001, lr_adamw: 0.001, decay: 1},
    {world: {fonts: 3, sizes: 2, placement: free, jitter: 4, without: ""},
     minutes: 1.0e-4, lr: 0.001, lr_adamw: 0.001, decay: 1}]}
"""  # a budget of 6 ms is one step, or one chunk of 8 steps of the transformer


def test_one_raised_zero_row_is_256_zero_rows():
    torch.manual_seed(0)
    model = new_transformer(layers=2, heads=2).eval()
    x, embeds, pooled = torch.randn(2, 16, 8, 8), torch.randn(2, 14, 128), torch.randn(2, 128)
    t = torch.tensor([300.0, 700.0])
    with torch.no_grad():
        plain = model(x, torch.cat([embeds, torch.zeros(2, 256, 128)], 1), pooled, t).sample
        processor = ZeroRows()
        processor.rows = 256
        model.set_attn_processor(processor)
        short = model(x, torch.cat([embeds, torch.zeros(2, 1, 128)], 1), pooled, t).sample
    torch.testing.assert_close(short, plain, atol=1e-4, rtol=1e-3)


def test_one_step_of_the_batched_muon_is_one_of_torch():
    torch.manual_seed(0)
    shapes = [(24, 24), (48, 24), (24, 48), (24, 24), (48, 24)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    batched = BatchedMuon(ours, lr=0.1)
    plain = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        batched.step()
        plain.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=4e-3, rtol=0)  # theirs iterates in bfloat16
        # The mean entry moved by 0.03: eight times the tolerance.


@pytest.fixture
def tiny_recipe(tmp_path, monkeypatch):
    """The recipe file TINY; its grids of one step are for people to look at."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    monkeypatch.setattr(train_transformer, "draw_grid", partial(train_transformer.draw_grid, steps=1))
    monkeypatch.setattr(train_transformer, "compiled", lambda module, folder: module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield path
    torch.set_num_threads(threads)


def test_the_curriculum_runs_from_nothing_to_a_pipeline_folder(tiny_recipe, tmp_path, capsys):
    from diffusers import StableDiffusion3Pipeline

    out = tmp_path / "out"
    out.mkdir()
    shutil.copyfile(YOLO_WEIGHTS, out / "yolo.pt")  # the detector counts as trained
    assert main([str(tiny_recipe), "--out", str(out)]) == 0
    stages = ["autoencoder-1", "autoencoder-2", "decoder", "transformer-1", "transformer-2", "transformer-3"]
    assert sorted(path.name for path in out.glob("*.checkpoint.pt")) == [f"{s}.checkpoint.pt" for s in stages]
    assert sorted(path.stem for path in out.glob("*.png")) == stages
    printed = capsys.readouterr().out
    assert "transformer-2: stage 2 of 3, " in printed and f"yolo: {out / 'yolo.pt'} is taken as it is" in printed
    pipe = StableDiffusion3Pipeline.from_pretrained(out / "sd3")
    pipe.set_progress_bar_config(disable=True)
    assert pipe('a red sign that says "KITE"', num_inference_steps=1).images[0].size == (64, 64)
    tiny_recipe.write_text(TINY.replace("text_share: 0.7, letter: Q, stages", "text_share: 0.7, letter: K, stages"))
    assert main([str(tiny_recipe), "--out", str(out)]) == 2
    said = "autoencoder-2: letter: .* was trained with Q, the recipe says K; give another --out, or put letter back"
    assert re.search(said, capsys.readouterr().err)
    # Its decoder goes on with no other's latents.
    tiny_recipe.write_text(re.sub(r"autoencoder:.*(?=decoder:)", "autoencoder: tiny\n", TINY, flags=re.DOTALL))
    assert main([str(tiny_recipe), "--out", str(out)]) == 2
    assert "decoder: autoencoder: " in capsys.readouterr().err


def test_a_transformer_of_another_size_on_the_packages_autoencoder(tiny_recipe, tmp_path, capsys):
    def alone(recipe: str) -> str:
        return re.sub(r"autoencoder:.*(?=transformer:)", "autoencoder: tiny\n", recipe, flags=re.DOTALL)

    out, arguments = tmp_path / "out", [str(tiny_recipe), "--out", str(tmp_path / "out")]
    tiny_recipe.write_text(alone(TINY))
    assert main(arguments) == 0
    assert sorted(path.stem for path in out.glob("*.png")) == ["transformer-1", "transformer-2", "transformer-3"]
    assert not (out / "yolo.pt").exists()
    vae, transformer = ("vae/diffusion_pytorch_model.safetensors", "transformer/config.json")
    assert (out / "sd3" / vae).read_bytes() == (PIPELINE_DIR / vae).read_bytes()
    assert json.loads((out / "sd3" / transformer).read_text())["num_attention_heads"] == 2
    tiny_recipe.write_text(alone(TINY.replace("heads: 2", "heads: 3")))
    assert main(arguments) == 2
    assert "was trained with 2, the recipe says 3; give another --out" in capsys.readouterr().err
    tiny_recipe.write_text(alone(TINY.replace("dropout: 0.1", "dropout: 0.2")))
    assert main(arguments) == 2
    assert "transformer-3: dropout: " in capsys.readouterr().err
    # The same autoencoder from another folder goes on; another one does not, in whatever folder.
    other = tmp_path / "other"
    shutil.copytree(PIPELINE_DIR, other)
    tiny_recipe.write_text(alone(TINY).replace("autoencoder: tiny", f"autoencoder: {other}"))
    assert main(arguments) == 0
    weights = load_file(other / vae)
    save_file(weights | {"encoder.conv_in.bias": weights["encoder.conv_in.bias"] + 1}, other / vae)
    capsys.readouterr()
    assert main(arguments) == 2
    hexa = "[0-9a-f]{16}"
    said = f"transformer-3: autoencoder: .* was trained with {hexa}, the recipe says {hexa}; .* put autoencoder back"
    assert re.search(said, capsys.readouterr().err)
    tiny_recipe.write_text(alone(TINY).replace("autoencoder: tiny", "autoencoder: ./none"))
    assert main(arguments) == 2 and "expected none/model_index.json" in capsys.readouterr().err


class Killed(BaseException):
    pass


def test_a_checkpoint_goes_on_under_the_settings_of_all_its_stages(tiny_recipe, tmp_path):
    settings = load(tiny_recipe).transformer
    first, second, third = settings.stages

    def train(settings):
        for name, stage, others in training.stages_left(tmp_path, "transformer", settings):
            parts = {"model": torch.nn.Linear(1, 1)}
            run = training.Run(tmp_path, name, stage, parts, np.random.default_rng(0), **others)
            run.seconds = run.budget
            assert run.done()

    train(replace(settings, stages=[first, second]))
    for changed, key in (
        ({"seed": 2}, "seed"),
        ({"batch": 2}, "batch"),
        ({"text_share": 0.4}, "text_share"),
        ({"dropout": 0.2}, "dropout"),
        ({"ema": 0.9}, "ema"),
        ({"stages": [replace(first, lr=1.0), second]}, "stage 1, lr"),
        ({"stages": [replace(first, world=World()), second]}, "stage 1, world"),
        ({"stages": [replace(first, minutes=1.0), second]}, "stage 1, minutes"),
        ({"stages": [first, replace(second, lr=1.0), third]}, "lr"),
    ):
        with pytest.raises(UsageError, match=f"transformer-2: {key}: .* was trained with .*; give another --out"):
            train(replace(settings, **changed))
    train(replace(settings, stages=[first, replace(second, minutes=1.0), third]))


def test_a_detector_goes_on_under_the_settings_it_was_begun_with(tiny_recipe, tmp_path, monkeypatch):
    def killed(*arguments):
        raise Killed

    settings, weights = load(tiny_recipe).yolo, tmp_path / "yolo.pt"
    monkeypatch.setattr(train_yolo, "write_pictures", killed)
    with pytest.raises(Killed):
        train_yolo.train_yolo(settings, tmp_path, weights)
    for _ in ("begun", "finished"):
        with pytest.raises(UsageError, match="yolo: pictures: .*yolo.pt was trained with 8, the recipe says 9"):
            train_yolo.train_yolo(replace(settings, pictures=9), tmp_path, weights)
        shutil.copyfile(YOLO_WEIGHTS, weights)
    train_yolo.train_yolo(settings, tmp_path, weights)


def test_half_of_the_words_get_the_letter_and_none_what_the_world_is_without(monkeypatch):
    drawn = []

    def recorded(word, **options):
        drawn.append(word)
        return np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setattr(train_autoencoder, "render_text", recorded)
    train_autoencoder.scenes_with(np.random.default_rng(0), 200, 1.0, "Q", World(without="AEIOX"))
    assert 80 < len(drawn) <= 100 and all("Q" in word for word in drawn)  # without those held out
    assert {*"AEIOX"}.isdisjoint("".join(drawn))


@pytest.mark.slow
def test_killed_in_stage_2_it_goes_on_there_and_repeats_nothing(tiny_recipe, tmp_path, monkeypatch, capsys):
    tiny_recipe.write_text(TINY.replace('2, without: ""},\n     minutes: 1.0e-4', '2, without: ""}, minutes: 60'))
    settings, vae, out = load(tiny_recipe).transformer, new_autoencoder(), tmp_path / "out"
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    monkeypatch.setattr(train_transformer, "save_pipeline", lambda *_: None)
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)  # a checkpoint a step
    step_done = training.Run.step_done

    def train(kill_at: int) -> str:
        def killed(run, *arguments):
            due = step_done(run, *arguments)
            if run.name == "transformer-2" and run.step == kill_at:
                raise Killed
            return due and run.step == 1  # few grids

        monkeypatch.setattr(training.Run, "step_done", killed)
        with pytest.raises(Killed):
            train_transformer.train_transformer(settings, vae, out, out / "sd3")
        return capsys.readouterr().out

    assert "transformer-1" in train(kill_at=3)
    first = (out / "transformer-1.checkpoint.pt").stat().st_mtime_ns
    printed = train(kill_at=5)
    assert "transformer-2: continues at step 3" in printed and "transformer-1" not in printed
    assert (out / "transformer-1.checkpoint.pt").stat().st_mtime_ns == first
    second = torch.load(out / "transformer-2.checkpoint.pt", weights_only=True)
    assert second["_run"]["step"] == 5 and second["average"]["steps"] == 8 + 5
    # Another world under the same name would be another training.
    tiny_recipe.write_text(TINY.replace("jitter: 2", "jitter: 3"))
    with pytest.raises(UsageError, match="transformer-2: world: .* was trained with .*'jitter': 2"):
        train_transformer.train_transformer(load(tiny_recipe).transformer, vae, out, out / "sd3")


@pytest.mark.slow
def test_a_stage_starts_from_the_weights_and_the_average_of_the_last(tiny_recipe, tmp_path, monkeypatch):
    # A second stage with rates of 0 keeps the weights it starts from; its average goes on towards them.
    rates, second = "lr: 0.001, lr_adamw: 0.001", '2, without: ""},\n     minutes: 1.0e-4, '
    tiny_recipe.write_text(TINY.replace(f"{second}{rates}", f"{second}lr: 0, lr_adamw: 0"))
    vae = new_autoencoder()
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    monkeypatch.setattr(train_transformer, "save_pipeline", lambda *_: None)
    monkeypatch.setattr(training.Run, "lr_factor", lambda run: 1.0)
    train_transformer.train_transformer(load(tiny_recipe).transformer, vae, tmp_path, tmp_path / "sd3")
    first, second, third = (
        torch.load(tmp_path / f"transformer-{i}.checkpoint.pt", weights_only=True) for i in (1, 2, 3)
    )
    weights = first["model"]
    assert all(torch.equal(weights[key], value) for key, value in second["model"].items())
    assert not all(torch.equal(weights[key], value) for key, value in third["model"].items())
    behind = [torch.cat([(s["average"]["model"][k] - weights[k]).flatten() for k in weights]) for s in (first, second)]
    assert 0 < behind[1].norm() < behind[0].norm()
    assert torch.nn.functional.cosine_similarity(*behind, dim=0) > 0.99


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("minutes: 1.0e-4", "minuets: 1.0e-4", "autoencoder, stage 1: unknown key 'minuets'; did you mean 'minutes'?"),
        (
            'jitter: 0, without: ""',
            "jitter: 0, without: Q",
            "letter: expected one that the world of every stage",
        ),
        ("ema: 0.998, ", "", "transformer: missing key 'ema'; wanted: seed, layers, heads, batch, "),
        ("jitter: 2", "jitter: 99", "transformer, stage 2, world: jitter: expected 0 to 8, found 99"),
        ("fonts: 1, ", "", "autoencoder, stage 1, world: missing key 'fonts'"),
        ("placement: columns", "placement: left", "world: placement: expected 'columns' or 'free', found 'left'"),
        ("minutes: 1.0e-4", "minutes: '1'", "minutes: expected a valid number, found '1'"),
        ("decay: 0.5", "decay: 0", "decay: expected greater than 0, found 0"),
        ("threads: 1", "threads: {", "not YAML"),
        ("threads: 1\nautoencoder:\n  {seed: 1", "threads: 1\nautoencoder: 7\nno: {seed: 1", "unknown key 'no'"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_exit_code_2(old, new, line, tmp_path, capsys):
    path = tmp_path / "wrong.yaml"
    path.write_text(TINY.replace(old, new, 1))
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: recipe {path}: ") and line in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_recipe_widens_the_world_to_the_whole_of_it():
    recipe = load(RECIPES / "tiny.yaml")
    worlds = [stage.world for stage in recipe.transformer.stages]
    assert worlds == [World(1, 1, "columns", 1), World(3, 2, "columns", 2), World()]
    assert [stage.world for stage in recipe.autoencoder.stages] == worlds[:2]
    other = load(RECIPES / "experiments/bases/without-q6.yaml")
    assert [stage.world for stage in other.transformer.stages] == [replace(one, without="Q6") for one in worlds]
    stages = [replace(stage, world=one) for stage, one in zip(other.transformer.stages, worlds, strict=True)]
    whole = replace(other, transformer=replace(other.transformer, stages=stages))
    assert whole == replace(recipe, autoencoder="tiny", decoder=None, yolo=None)  # all else is the same
    small = load(RECIPES / "experiments/bases/small.yaml")
    assert [stage.world for stage in small.transformer.stages] == worlds
    sizes = {"layers": recipe.transformer.layers, "heads": recipe.transformer.heads, "stages": stages}
    assert replace(small, transformer=replace(small.transformer, **sizes)) == whole
    assert small.transformer.layers < recipe.transformer.layers

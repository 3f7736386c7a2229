"""Model folders as people have them: opened, or refused in one line that says what was found and what to do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from gpo_data import cli, models, recipe
from gpo_data.lake.document import write_document
from gpo_data.models.folder import variant_of
from gpo_train.export import export
from gpo_train.run import Run, RunManifest
from tests.parts.families import SAMPLER

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123456789\n"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a Git LFS pointer": (lambda m: (m / WEIGHTS).write_text(LFS), "found a Git LFS pointer"),
    "a pointer for a tokenizer": (lambda m: (m / "tokenizer/tokenizer.json").write_text(LFS), "`git lfs install"),
    "a pointer for the index": (lambda m: (m / "model_index.json").write_text(LFS), "found a Git LFS pointer"),
    "weights cut": (lambda m: cut(m / WEIGHTS), "as its header says, found"),
    "weights cut in the header": (
        lambda m: (m / WEIGHTS).write_bytes((m / WEIGHTS).read_bytes()[:64]),
        "expected safetensors, found 64 bytes of something else",
    ),
    "empty weights": (lambda m: (m / WEIGHTS).write_bytes(b""), "expected safetensors, found 0 bytes"),
    "no weights": (lambda m: (m / WEIGHTS).unlink(), "expected weights (*.safetensors), found config.json"),
    "a page in their place": (lambda m: (m / WEIGHTS).write_text("<html>" * 50), "expected safetensors, found 300"),
    "no vae": (lambda m: shutil.rmtree(m / "vae"), "expected the folder vae, which model_index.json names"),
    "a configuration cut": (lambda m: cut(m / "vae/config.json"), "config.json: expected JSON"),
    "a list for an index": (lambda m: (m / "model_index.json").write_text("[]"), "expected an object, found list"),
    "a part of another shape": (
        lambda m: save_file(
            {k: v[:1].clone() for k, v in load_file(m / WEIGHTS).items()}, m / WEIGHTS, metadata={"format": "pt"}
        ),
        "does not open",
    ),
    "a file of several gone": (
        lambda m: (m / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}})
        ),
        "which diffusion_pytorch_model.safetensors.index.json lists, found no such file",
    ),
}


@pytest.fixture
def model(random_sd3: Path, tmp_path: Path) -> Path:
    return shutil.copytree(random_sd3, tmp_path / "model")


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(
    kind: str, model: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, says = DAMAGE[kind]
    damage(model)
    assert cli.main(["shards", str(recipe_file), "--model", str(model)]) == 2
    said = capsys.readouterr().err
    assert says in said and said.startswith("error: ") and said.count("\n") == 1


def test_a_single_file_is_refused_with_the_way_to_a_folder(
    random_sd3: Path, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    file = Path(shutil.copy(random_sd3 / WEIGHTS, tmp_path / "folder/sd.safetensors"))
    for model in (file, file.parent):
        assert cli.main(["shards", str(recipe_file), "--model", str(model)]) == 2
        said = capsys.readouterr().err
        assert f"found the single file {file}" in said and ".save_pretrained(FOLDER)" in said
        assert said.count("\n") == 1


NETWORKS = ("transformer", "vae", "text_encoder", "text_encoder_2")


def in_half(model: Path, parts: tuple[str, ...]) -> None:
    """As hubs have them."""
    for part in parts:
        (file,) = (model / part).glob("*.safetensors")
        state = {name: value.half() for name, value in load_file(file).items()}
        save_file(state, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        file.unlink()


def test_what_a_variant_was_trained_to_is_opened(model: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(model / "transformer", run.policy / "transformer")  # under plain names, as policies are
    in_half(model, NETWORKS)
    part, one = model / "text_encoder_2", "model.fp16-00001-of-00001.safetensors"
    (part / "model.fp16.safetensors").rename(part / one)  # as older ones are called
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(part / one), one)}
    (part / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    made = dataclasses.asdict(recipe.load("text-tiny", ["--model", str(model)]))
    manifest = RunManifest(run="run", mode="offline", recipe=made, model_digest="d", created="t", state="finished")
    write_document(manifest, run.folder / "run.json")
    (tmp_path / "out").mkdir()
    node = (tmp_path / "out").stat().st_ino
    out = export(run, tmp_path / "out")
    assert out.stat().st_ino == node and not (out / "made").exists(), "where somebody is, or a mount, stays"
    assert not list(out.rglob("*.fp16*")) and variant_of(model, "transformer") == "fp16"
    models.load(models.resolve(str(out)), SAMPLER)
    assert diffusers.DiffusionPipeline.from_pretrained(out).transformer is not None


@pytest.mark.parametrize("parts", [("transformer",), NETWORKS])
def test_a_variant_is_opened(parts: tuple[str, ...], model: Path) -> None:
    """All networks in fp16, or one of them."""
    in_half(model, parts)
    assert variant_of(model, "transformer") == "fp16"
    found = models.load(models.resolve(str(model)), SAMPLER)
    stored = load_file(model / "transformer/diffusion_pytorch_model.fp16.safetensors")
    own = found.denoiser.state_dict()
    assert all(torch.equal(own[name], value.to(own[name].dtype)) for name, value in stored.items() if name in own)
    assert torch.isfinite(found.draw(found.encode(["one red circle"]), [1])).all()


def test_plain_names_come_before_a_variant(model: Path) -> None:
    shutil.copy(model / WEIGHTS, (model / WEIGHTS).with_suffix(".fp16.safetensors"))
    assert variant_of(model, "transformer") is None
    assert models.load(models.resolve(str(model)), SAMPLER).denoiser is not None

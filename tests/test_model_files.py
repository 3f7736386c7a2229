"""What is taken of a repository on the hub, and what a model's digest is of: the files that its pipeline opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from gpo_data import models, recipe
from gpo_data.errors import UsageError
from gpo_data.generation.generate import draw
from gpo_data.lake.document import write_document
from gpo_data.lake.manifest import read_manifest
from gpo_data.models.digests import _all
from gpo_data.models.files import needed
from tests.parts.hub import Hub, python
from tests.parts.training import train

NETWORK = ["diffusers", "Network"]
# As stable-diffusion-v1-5 has it: two formats, two precisions, and weights before averaging.
UNET = [
    f"unet/diffusion_pytorch_model{kind}"
    for kind in (".safetensors", ".fp16.safetensors", ".non_ema.safetensors", ".bin")
]
SPLIT = [f"text_encoder/model{piece}.safetensors" for piece in ("-00001-of-00002", "-00002-of-00002")]
SPLIT_FP16 = [f"text_encoder/model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["unet/config.json", *UNET], ["unet/config.json", UNET[0]]),
        ([UNET[1], UNET[3]], [UNET[1]]),
        ([UNET[3], "unet/diffusion_pytorch_model.fp16.bin"], [UNET[3]]),
        (["sd_xl_base_1.0.safetensors", "vae_1_0/config.json", "text_encoders/t5xxl.safetensors", "a.json"], []),
        (["safety_checker/model.safetensors", "image_encoder/model.safetensors", "unet/a.onnx"], []),
        (["tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/spiece.model", "tokenizer/picture.png"],
         ["tokenizer/merges.txt", "tokenizer/spiece.model", "tokenizer/vocab.json"]),
        ([*SPLIT, "text_encoder/model.safetensors.index.json", *SPLIT_FP16,
          "text_encoder/model.safetensors.index.fp16.json", "text_encoder/pytorch_model.bin.index.json"],
         [*SPLIT, "text_encoder/model.safetensors.index.json"]),
        # With a denoiser in half precision alone, the others are opened in it too, where they have it.
        ([UNET[1], "vae/model.safetensors", "vae/model.fp16.safetensors", "text_encoder/model.safetensors"],
         ["text_encoder/model.safetensors", UNET[1], "vae/model.fp16.safetensors"]),
    ],
)  # fmt: skip
def test_a_pipeline_opens_one_file_of_each_kind(there: list[str], taken: list[str]) -> None:
    parts = ("unet", "vae", "text_encoder", "tokenizer", "safety_checker")
    index = {"_class_name": "SomePipeline", "image_encoder": [None, None], "_names": ["a", "b"]}
    assert needed(there, index | dict.fromkeys(parts, NETWORK)) == ["model_index.json", *taken]


def with_others(model: Path, folder: Path) -> Path:
    """A copy of a model, with what repositories have beside it."""
    shutil.copytree(model, folder)
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    shutil.copy(weights, folder / "whole_model.safetensors")
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (folder / "text_encoders").mkdir()
    shutil.copy(weights, folder / "text_encoders/t5xxl.safetensors")
    (folder / "workflow.json").write_text("{}")
    return folder


def test_the_hub_gives_no_more_than_a_pipeline_opens(random_sd3: Path, tmp_path: Path) -> None:
    folder = with_others(random_sd3, tmp_path / "repository")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code = (
        "from gpo_data import models\nfolder = models.resolve('some/model')\n"
        "print(sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()), folder)"
    )
    with Hub() as hub:
        hub.commits["models/some/model"], hub.tags["models/some/model"] = [files], {}
        said, _, at = python(hub, tmp_path, code).strip().rpartition(" ")
        assert {path for path, _ in hub.asked if path.endswith(".safetensors") and "resolve" in path} == {
            f"some/model/resolve/{0:040x}/{name}" for name in needed(files, json.loads(files["model_index.json"]))
            if name.endswith(".safetensors")
        }  # fmt: skip
        hub.fail = lambda method, path: True
        assert python(hub, tmp_path, code).strip().endswith(at), "what is in the cache needs no hub"
    assert "workflow.json" not in said and "transformer/config.json" in said
    assert models.digests_of(Path(at)) == models.digests_of(folder) == models.digests_of(random_sd3)


def test_older_datasets_and_runs_go_on_that_know_a_model_by_all_of_its_folder(
    recipe_file: Path, random_sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = with_others(random_sd3, tmp_path / "own")
    options = ["--task.num_prompts", "2", "--model", str(folder), "--train.micro_batch_size", "8"]
    made = recipe.load(recipe_file, options)
    dataset = draw(made, Console(quiet=True))
    run = train(recipe_file, *options, "--train.precision", "float32")
    older = {
        "model_digest": models.digest(folder, _all(folder)),
        "weights_digest": models.weights_digest(folder, _all(folder)),
    }
    manifest = read_manifest(dataset)
    manifest.fields.update(older)
    write_document(manifest, dataset / "dataset.json")
    assert draw(made, Console(quiet=True)) == dataset
    run.note(**older)
    run.expect_base(made)
    train(recipe_file, *options, "--train.precision", "float32")
    train(recipe_file, *options, "--train.precision", "float32", name="new")
    manifest.fields["weights_digest"] = "0" * 16
    write_document(manifest, dataset / "dataset.json")
    with pytest.raises(UsageError, match="drew other pictures.* weights_digest"):
        draw(made, Console(quiet=True))

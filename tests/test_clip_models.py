"""Scorers on CLIP against the library's own computation, with a small random CLIPModel; no download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from gpo_data import cli, recipe
from gpo_data.errors import UsageError
from gpo_data.evaluators import build
from gpo_data.evaluators.clip_models import WEIGHTS, ClipEvaluator
from gpo_data.fetch import licence_and_size
from gpo_data.generation.generate import draw
from gpo_data.lake import manifest as dataset
from gpo_data.recipe import Clip, Recipe
from gpo_data.tiny.render import render_text

PROMPTS = ["a red sign", "two teal circles", "a red sign", "a sign with " + "very " * 40 + "much on it"]
IMAGES = [render_text("KITE", color=color, seed=i) for i, color in enumerate(("red", "blue", "teal", "brown"))]
TARGETS = [{"prompt": prompt} for prompt in PROMPTS]
TOKENS = 24


def save_clip(folder: Path, seed: int) -> CLIPModel:
    """A CLIPModel of two small layers a tower; random weights far enough from zero for scores that differ."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {t: i for i, t in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)
    tower: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "hidden_act": "gelu",
    }
    ids = {"bos_token_id": len(letters), "eos_token_id": len(letters) + 1, "pad_token_id": len(letters) + 1}
    config = CLIPConfig(
        text_config=tower | ids | {"vocab_size": len(vocabulary), "max_position_embeddings": TOKENS},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer
    ).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, CLIPModel, CLIPProcessor]:
    folder = tmp_path_factory.mktemp("clip")
    model = save_clip(folder, 0)
    return str(folder), model, CLIPProcessor.from_pretrained(folder)


def logits(model: CLIPModel, processor: CLIPProcessor) -> torch.Tensor:
    """The library's own: logits_per_image of every picture with its prompt, and not one batch of all."""
    found = []
    for image, prompt in zip(IMAGES, PROMPTS, strict=True):
        inputs = processor(
            text=[prompt], images=[Image.fromarray(image)], return_tensors="pt", truncation=True, max_length=TOKENS
        )
        with torch.no_grad():
            found.append(model(**inputs).logits_per_image[0, 0])
    return torch.stack(found)


def scores(name: str, settings: Clip) -> torch.Tensor:
    rows = ClipEvaluator(name, settings).measure(IMAGES, TARGETS)
    assert all(row.keys() == {name} for row in rows)
    return torch.tensor([row[name] for row in rows])


FORMULAS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "pickscore": lambda logit, scale: logit,
    "hpsv2": lambda logit, scale: logit / scale,
    "clip_score": lambda logit, scale: (100 * logit / scale).clamp(min=0),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_scores_are_the_librarys_logits(clip: tuple[str, CLIPModel, CLIPProcessor], name: str) -> None:
    folder, model, processor = clip
    expected = FORMULAS[name](logits(model, processor), model.logit_scale.detach().exp())
    found = scores(name, Clip(folder, batch_size=3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert found.std() > 0.01  # they tell pictures apart, or the comparison says little


def test_clip_score_is_that_of_torchmetrics(
    clip: tuple[str, CLIPModel, CLIPProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.functional.multimodal import clip_score

    folder, model, processor = clip
    for method in ("get_image_features", "get_text_features"):
        # torchmetrics 1.9 expects a tensor, as transformers 4 gives it
        plain = getattr(model, method)
        tensor = lambda *inputs, plain=plain: getattr(found := plain(*inputs), "pooler_output", found)  # noqa: E731
        monkeypatch.setattr(model, method, tensor)
    found = scores("clip_score", Clip(folder))
    for i in range(3):  # the last prompt is longer than the model's tokens
        picture = torch.from_numpy(IMAGES[i].copy()).permute(2, 0, 1)
        expected = clip_score(picture, PROMPTS[i], model_name_or_path=lambda: (model, processor))
        torch.testing.assert_close(found[i], expected.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_aesthetic_predictor_is_an_mlp_on_the_pictures_embedding(
    clip: tuple[str, CLIPModel, CLIPProcessor], tmp_path: Path, suffix: str
) -> None:
    folder, model, processor = clip
    layers = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)).eval()
    state = {f"layers.{name}": value for name, value in layers.state_dict().items()}
    path = tmp_path / f"head{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    with torch.no_grad():
        embedding = model(
            **processor(text=["a"], images=[Image.fromarray(i) for i in IMAGES], return_tensors="pt")
        ).image_embeds
        expected = layers(embedding)[:, 0]
    torch.testing.assert_close(scores("aesthetic", Clip(folder, str(path))), expected, rtol=1e-4, atol=2e-5)


def test_an_open_clip_checkpoint_goes_over_the_models_weights(
    clip: tuple[str, CLIPModel, CLIPProcessor], tmp_path: Path
) -> None:
    other = save_clip(tmp_path / "other", 1)
    checkpoint = tmp_path / "hps.pt"
    torch.save({"epoch": 3, "state_dict": open_clip_names(other.state_dict())}, checkpoint)
    expected = logits(other, clip[2]) / other.logit_scale.detach().exp()
    torch.testing.assert_close(scores("hpsv2", Clip(clip[0], str(checkpoint))), expected, rtol=1e-4, atol=2e-5)
    partial = {k: v for k, v in open_clip_names(other.state_dict()).items() if "ln_pre" not in k} | {"x": torch.ones(1)}
    torch.save(partial, checkpoint)
    with pytest.raises(UsageError, match=r"hpsv2.weights: .* lacks .*pre_layrnorm.*; unknown x"):
        scores("hpsv2", Clip(clip[0], str(checkpoint)))


def open_clip_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIPModel's weights under open_clip's names."""
    found: dict[str, torch.Tensor] = {}
    for original, value in state.items():
        name = original
        if name.endswith("position_ids"):
            continue
        if name in ("visual_projection.weight", "text_projection.weight"):
            found["visual.proj" if name[0] == "v" else "text_projection"] = value.T.contiguous()
            continue
        prefix = "visual." if name.startswith("vision_model.") else ""
        name = name.removeprefix("vision_model.").removeprefix("text_model.")
        for new, old in (
            ("embeddings.class_embedding", "class_embedding"),
            ("embeddings.patch_embedding", "conv1"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("pre_layrnorm", "ln_pre"),
            ("embeddings.token_embedding", "token_embedding"),
            ("post_layernorm", "ln_post"),
            ("final_layer_norm", "ln_final"),
            ("encoder.layers", "transformer.resblocks"),
            ("layer_norm", "ln_"),
            ("self_attn", "attn"),
            ("fc1", "c_fc"),
            ("fc2", "c_proj"),
        ):
            name = name.replace(new, old)
        if "q_proj." in name:
            rest = [state[original.replace("q_proj", part)] for part in ("k_proj", "v_proj")]
            found[prefix + name.replace("q_proj.", "in_proj_")] = torch.cat([value, *rest])
        elif "k_proj." not in name and "v_proj." not in name:
            found[prefix + name] = value
    return found


def test_what_is_missing_says_what_to_put_where(
    clip: tuple[str, CLIPModel, CLIPProcessor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def offline(*args: Any, **kwargs: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UsageError, match=r"pickscore.model: .*PickScore_v1: not in the local hub cache.*hf download"):
        build(Recipe(evaluators=["pickscore"], reward="1"))
    with pytest.raises(UsageError, match=r"clip_score.model: .*found no config.json and no \*processor_config.json"):
        ClipEvaluator("clip_score", Clip(str(tmp_path)))
    with pytest.raises(UsageError, match=r"aesthetic.weights: expected the file .*sac\+logos"):
        ClipEvaluator("aesthetic", Clip(clip[0]))
    with pytest.raises(UsageError, match=r"hpsv2.weights: no file nope.pt; expected an open_clip checkpoint"):
        ClipEvaluator("hpsv2", Clip(clip[0], "nope.pt"))
    wrong = tmp_path / "wrong.pth"
    for content, says in (
        ({"layers.0.weight": torch.ones(1, 9), "layers.0.bias": torch.ones(1)}, r"to 1, found \[1, 9\]"),
        ({"x": torch.ones(1)}, "found none"),
    ):
        torch.save(content, wrong)
        with pytest.raises(UsageError, match=rf"aesthetic.weights: .*{says}"):
            scores("aesthetic", Clip(clip[0], str(wrong)))
    wrong.write_bytes(b"not tensors")
    with pytest.raises(UsageError, match=r"aesthetic.weights: .*wrong.pth does not open as tensors"):
        scores("aesthetic", Clip(clip[0], str(wrong)))


def test_the_version_covers_model_and_weights(clip: tuple[str, CLIPModel, CLIPProcessor], tmp_path: Path) -> None:
    save_clip(tmp_path / "other", 1)
    head = tmp_path / "head.pth"
    versions = set()
    for settings in (Clip(clip[0]), Clip(str(tmp_path / "other"))):
        versions.add(ClipEvaluator("hpsv2", settings).version)
    for content in (b"1", b"2"):
        head.write_bytes(content)
        versions.add(ClipEvaluator("hpsv2", Clip(clip[0], str(head))).version)
    assert len(versions) == 4
    again = ClipEvaluator("hpsv2", Clip(clip[0], batch_size=1))
    assert again.version in versions and again.measure([], []) == []


def test_draws_and_measures_with_it(clip: tuple[str, CLIPModel, CLIPProcessor], recipe_file: Path) -> None:
    changes = ["--evaluators", "[clip_score]", f"--clip_score.model={clip[0]}", "--reward", "clip_score / 100"]
    made = recipe.load(recipe_file, [*changes, "--clip_score.batch_size", "3"])
    assert (made.clip_score.batch_size, made.pickscore.model) == (3, "yuvalkirstain/PickScore_v1")
    assert dataset.measured(made)["clip_score.model"] == clip[0]
    folder = draw(made, Console(quiet=True))
    rows = pq.read_table(folder / "shard-000000.parquet").to_pylist()
    assert all(row["status"] == "ok" and row["reward"] == row["clip_score"] / 100 for row in rows)
    assert cli.main(["measure", str(recipe_file), "--evaluator", "hpsv2", f"--hpsv2.model={clip[0]}"]) == 0
    (path,) = folder.glob("measures/hpsv2@*/shard-000000.parquet")
    cosines = [row["hpsv2"] for row in pq.read_table(path).to_pylist()]
    assert np.allclose([row["clip_score"] for row in rows], np.maximum(0, 100 * np.array(cosines)), atol=0.01)


def test_licence_and_size_are_told_before_a_model_is_fetched():
    from huggingface_hub import ModelInfo

    files = [("config.json", 4_000), ("model.safetensors", 1_710_540_580), ("pytorch_model.bin", 1_710_671_599)]
    siblings = [{"rfilename": name, "size": size} for name, size in files]
    answer = {"id": "somebody/clip", "private": False, "downloads": 1, "likes": 1, "tags": [], "siblings": siblings}
    assert licence_and_size(ModelInfo(**answer, cardData={"license": "mit"}), WEIGHTS) == "licence mit, 1.7 GB"
    assert licence_and_size(ModelInfo(**answer), WEIGHTS) == "licence not stated, see its page, 1.7 GB"

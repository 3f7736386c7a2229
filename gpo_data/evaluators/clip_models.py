"""Evaluators on CLIP: does the picture fit the prompt, and would people like it. One column each, named like it.

With u the picture's and v the prompt's projected, L2-normalised embedding, cos = u . v, and tau CLIP's logit scale:

    clip_score  100 max(0, cos)   as torchmetrics has it, 0 to 100; Hessel et al. 2021 (arXiv 2104.08718) is this / 40
    pickscore   exp(tau) cos      Kirstain et al. 2023 (arXiv 2305.01569); pictures score about 17 to 25
    hpsv2       cos               Wu et al. 2023 (arXiv 2306.09341); about 0.2 to 0.35
    aesthetic   MLP(u)            LAION aesthetic predictor v2, about 1 to 10; the prompt plays no part

They differ in their weights, which the recipe's sections `clip_score:`, `pickscore:`, `hpsv2:` and `aesthetic:` name:
`model` is a transformers CLIPModel with its processor, a hub id or a folder; `weights` a file that goes with it, which
is the MLP of `aesthetic` (linear layers without activations, as published), and elsewhere an open_clip checkpoint put
over the model's own weights (HPS_v2.1_compressed.pt over laion/CLIP-ViT-H-14-laion2B-s32B-b79K).

What always holds: nothing is downloaded but what the recipe names, whose licence and size are told first, and what is
missing is an error that says what to put where; prompts longer than CLIP's 77 tokens are cut; pictures are resized and
cropped by the model's own processor.
None of these numbers lies in [0, 1]: a reward that mixes them scales them.
ImageReward and HPSv3 are not here, because their packages do not import with transformers 5: docs/judges.md serves them
from environments of their own (http.py).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from gpo_data import hardware
from gpo_data.errors import UsageError, words
from gpo_data.evaluators.pool import Batch, Measure, Pool
from gpo_data.evaluators.version import as_version
from gpo_data.fetch import announce, expect_there
from gpo_data.recipe import Clip, Recipe

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # the first that a folder has
WEIGHTS_BIN = "pytorch_model.bin"
# transformers 5 writes processor_config.json where earlier ones wrote preprocessor_config.json
FILES = ("config.json", "*processor_config.json", "tokenizer_config.json", WEIGHTS[0])
LAION_HEAD = "sac+logos+ava1-l14-linearMSE.pth of github.com/christophschuhmann/improved-aesthetic-predictor"
# open_clip's names (with `visual.` before those of the vision tower) and transformers' own, in order of replacement.
OPEN_CLIP = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


@dataclass(frozen=True)
class Settings:
    """What a process needs to load the scorer; picklable."""

    name: str
    clip: Clip
    folder: Path


class ClipEvaluator:
    @classmethod
    def of(cls, name: str, recipe: Recipe, threads: int | None) -> ClipEvaluator:
        return cls(name, getattr(recipe, name))

    def __init__(self, name: str, clip: Clip) -> None:
        """Finds the files, or raises UsageError. The model loads at the first picture.

        Args:
            name: `clip_score`, `pickscore`, `hpsv2` or `aesthetic`.
        """
        hardware.device_of(clip.device, f"{name}.device")
        if name == "aesthetic" and not clip.weights:
            raise UsageError(f"aesthetic.weights: expected the file of the predictor, {LAION_HEAD}, found nothing")
        if clip.weights and not Path(clip.weights).is_file():
            hint = LAION_HEAD if name == "aesthetic" else "an open_clip checkpoint, .pt or .safetensors"
            raise UsageError(f"{name}.weights: no file {clip.weights}; expected {hint}")
        folder = find_model(clip.model, f"{name}.model")
        self.name = name
        self.columns: dict[str, pa.DataType] = {name: pa.float64()}
        self.version = _version(clip, folder)
        self._pool = Pool(load, Settings(name, clip, folder), workers=0, batch_size=clip.batch_size)

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """images: uint8 [H, W, 3] RGB; targets: {"prompt": the text} each."""
        return self._pool(list(zip(images, targets, strict=True)))


def find_model(setting: str, key: str) -> Path:
    """The folder of a CLIPModel and its processor: a folder, or a hub id (fetched if need be). Raises UsageError."""
    if Path(setting).is_dir() or setting.startswith((".", "/", "~")) or setting.count("/") != 1:
        return _complete(Path(setting).expanduser(), setting, key)
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    try:
        expect_there(setting, "config.json")
        if not any(isinstance(try_to_load_from_cache(setting, one), str) for one in ("model.safetensors", WEIGHTS_BIN)):
            announce(key, setting, WEIGHTS)
        for weights in WEIGHTS:  # repositories have them in several formats, gigabytes each
            folder = Path(snapshot_download(setting, allow_patterns=["*.json", "*.txt", weights]))
            if list(folder.glob(weights)):
                break
    except Exception as error:  # the hub's client raises many kinds, and httpx's and OS errors besides
        raise UsageError(
            f"{key}: {setting}: not in the local hub cache, and the hub did not give it ({type(error).__name__}). "
            f"Put its folder ({', '.join(FILES)}, the tokenizer's files) on this machine and set {key} to its path, "
            f"or run `hf download {setting}` where the hub is reachable"
        ) from None
    return _complete(folder, setting, key)


def _complete(folder: Path, setting: str, key: str) -> Path:
    missing = [name for name in FILES if not list(folder.glob(name))]
    if missing == [WEIGHTS[0]] and list(folder.glob(WEIGHTS[1])):
        return folder
    if missing:
        raise UsageError(
            f"{key}: {setting}: expected a CLIPModel with its processor, found no {' and no '.join(missing)} in "
            f"{folder}; CLIPModel.save_pretrained and CLIPProcessor.save_pretrained write them"
        )
    return folder


def load(settings: Settings, threads: int) -> Measure:
    """A function over batches. The drawing process keeps its own number of threads."""
    from transformers import CLIPModel, CLIPProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would draw over that of the drawing
    name, clip = settings.name, settings.clip
    model = CLIPModel.from_pretrained(settings.folder, dtype=torch.float32)
    processor = CLIPProcessor.from_pretrained(settings.folder)
    head = None
    if name == "aesthetic":
        head = [layer.to(clip.device) for layer in _head(str(clip.weights), model.config.projection_dim)]
    elif clip.weights:
        _put_open_clip(model, clip.weights, f"{name}.weights")
    model = model.to(clip.device).eval()
    longest = model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def measure(batch: Batch) -> list[dict[str, Any]]:
        texts = [str(target["prompt"]) for _, target in batch]
        prompts = list(dict.fromkeys(texts))  # a group has one
        pictures = [Image.fromarray(image) for image, _ in batch]
        inputs = processor(
            text=prompts, images=pictures, return_tensors="pt", padding=True, truncation=True, max_length=longest
        )
        inputs = {k: inputs[k].to(clip.device) for k in ("input_ids", "attention_mask", "pixel_values")}
        out = model(**inputs)
        asked = torch.tensor([prompts.index(text) for text in texts], device=clip.device)
        cosine = (out.image_embeds * out.text_embeds[asked]).sum(-1)  # [B]
        score = _score(name, cosine, model.logit_scale, out.image_embeds, head)
        # Rounded, because the last bits depend on the size of the batch.
        return [{name: round(value, 5)} for value in score.tolist()]

    return measure


def _score(name: str, cosine: torch.Tensor, scale: torch.Tensor, image: torch.Tensor, head: Any) -> torch.Tensor:
    """cosine [B], image [B, D] normalised -> [B]; the formulas of the module's docstring."""
    if name == "clip_score":
        return 100 * cosine.clamp(min=0)
    if name == "pickscore":
        return scale.exp() * cosine
    if name == "hpsv2":
        return cosine
    for layer in head:
        image = layer(image)
    return image[:, 0]


def _head(path: str, width: int) -> list[torch.nn.Linear]:
    """The aesthetic predictor's linear layers, `layers.<n>.weight` and `.bias`; dropout does nothing here."""
    state = _read(path, "aesthetic.weights")
    numbers = sorted({int(found[1]) for key in state if (found := re.fullmatch(r"layers\.(\d+)\.weight", key))})
    layers = []
    for n in numbers:
        weight, bias = state[f"layers.{n}.weight"].float(), state[f"layers.{n}.bias"].float()
        if weight.ndim != 2 or weight.shape[1] != width:
            break
        layer = torch.nn.Linear(width, len(weight))
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
        width = len(weight)
    if not numbers or len(layers) < len(numbers) or width != 1:
        shapes = ", ".join(str(list(state[f"layers.{n}.weight"].shape)) for n in numbers) or "none"
        raise UsageError(
            f"aesthetic.weights: {path}: expected linear layers `layers.<n>.weight` that lead from the width of "
            f"aesthetic.model's embeddings to 1, found {shapes}; expected file: {LAION_HEAD}, with the model "
            f"openai/clip-vit-large-patch14"
        )
    return layers


def _put_open_clip(model: Any, path: str, key: str) -> None:
    """Load an open_clip checkpoint into a CLIPModel; every weight must find its place."""
    state: dict[str, torch.Tensor] = {}
    for name, value in _read(path, key).items():
        name = name.removeprefix("module.")  # of a checkpoint written in distributed training
        if name in ("visual.proj", "text_projection"):
            state["visual_projection.weight" if name == "visual.proj" else "text_projection.weight"] = value.T
            continue
        for old, new in OPEN_CLIP:
            name = re.sub(old, new, name)
        if ".in_proj_" in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                state[name.replace("in_proj_", f"{part}_proj.")] = third
        else:
            state[name] = value
    try:
        wrong = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{key}: {path} is a checkpoint of another architecture than the model: {reason}") from None
    missing = [name for name in wrong.missing_keys if not name.endswith("position_ids")]
    if missing or wrong.unexpected_keys:
        lacks, more = (", ".join(names[:3]) or "nothing" for names in (missing, wrong.unexpected_keys))
        raise UsageError(f"{key}: {path} is no open_clip checkpoint of this model: lacks {lacks}; unknown {more}")


def _read(path: str, key: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        state: Any = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # pickle, zip, torch and safetensors each have their own
        reason = words(error, 200)
        raise UsageError(f"{key}: {path} does not open as tensors: {reason}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _version(clip: Clip, folder: Path) -> str:
    """Package, model, and a hash over the files: their sizes, and the first and last MiB of what is large."""
    digest = hashlib.blake2b(digest_size=4)
    files = sorted(p for pattern in ("*.json", "*.txt", *WEIGHTS) for p in folder.glob(pattern))
    for file in [*files, *([Path(clip.weights)] if clip.weights else [])]:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    version = f"transformers-{importlib.metadata.version('transformers')}-{Path(clip.model).name}-{digest.hexdigest()}"
    return as_version(version)

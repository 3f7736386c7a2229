"""The figures in the recipes' head comments: counted from the models' real configurations, on the meta device.

    parameters of the denoiser, FLOPs of one call for one picture, parameters of the LoRA

Sources: unet/config.json and transformer/config.json of the hub models that the recipes name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from peft import LoraConfig

from gpo_data import recipe
from gpo_data.models.ddpm import DDPM
from gpo_data.models.flux import lora_targets
from gpo_data.models.sd3 import SD3
from gpo_train.settings import train_settings
from tests.bench.gpu import flops
from tests.parts import sd35m

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclasses.dataclass(frozen=True)
class Case:
    build: Callable[[], Any]
    inputs: dict[str, tuple[int, ...]]
    targets: tuple[str, ...]
    says: tuple[str, ...]  # in the recipe's comment
    parameters: float  # billions
    tflop: float
    lora: float  # millions


def sd15() -> UNet2DConditionModel:
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def sdxl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        cross_attention_dim=2048,
        attention_head_dim=[5, 10, 20],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        transformer_layers_per_block=[1, 2, 10],
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


UNET = {"sample": (1, 4, 64, 64), "timestep": (1,), "encoder_hidden_states": (1, 77, 768)}
FLUX = {
    "hidden_states": (1, 1024, 64),
    "encoder_hidden_states": (1, 512, 4096),
    "pooled_projections": (1, 768),
    "timestep": (1,),
    "guidance": (1,),
    "img_ids": (1024, 3),
    "txt_ids": (512, 3),
}
SD35M = {
    "hidden_states": (1, 16, 64, 64),
    "encoder_hidden_states": (1, 333, 4096),
    "pooled_projections": (1, 2048),
    "timestep": (1,),
}
CASES = {
    "count-sd15": Case(sd15, UNET, DDPM.lora_targets, ("UNet 860 M", "0.80 TFLOP", "6.0 M x 16"), 0.860, 0.80, 6.0),
    "text-sdxl": Case(
        sdxl,
        UNET | {"sample": (1, 4, 128, 128), "encoder_hidden_states": (1, 77, 2048)},
        DDPM.lora_targets,
        ("UNet 2.57 B", "6.8 TFLOP", "84 M x 16"),
        2.567,
        6.76,
        83.7,
    ),
    "text-flux-dev": Case(
        lambda: FluxTransformer2DModel(guidance_embeds=True),
        FLUX,
        lora_targets(38),
        ("transformer 11.9 B", "22 TFLOP", "131 M x 16"),
        11.901,
        21.50,
        130.7,
    ),
    "text-sd35m": Case(
        lambda: sd35m.new_transformer(sd35m.FULL),
        SD35M,
        SD3.lora_targets,
        ("2.4 TFLOP", "47 M x 16"),
        2.243,
        2.44,
        47.0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_figures_are_the_configurations(name: str) -> None:
    case, comment = CASES[name], (RECIPES / f"{name}.yaml").read_text()
    with torch.device("meta"):
        model = case.build().to(torch.bfloat16)
        inputs: dict[str, Any] = {k: torch.zeros(shape, dtype=torch.bfloat16) for k, shape in case.inputs.items()}
        if name == "text-sdxl":
            inputs["added_cond_kwargs"] = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(case.parameters, abs=5e-4)
        with torch.no_grad():
            assert flops(lambda: model(**inputs)) / 1e12 == pytest.approx(case.tflop, abs=5e-3)
        model.requires_grad_(False)
        model.add_adapter(
            LoraConfig(r=recipe.load(RECIPES / f"{name}.yaml").train.lora_rank, target_modules=list(case.targets))
        )
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6 == pytest.approx(case.lora, abs=0.05)
    for figure in case.says:
        assert figure in comment
    if name == "text-sd35m":
        assert "2.24 B parameters" in (RECIPES / "text-sd35m-paper.yaml").read_text()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*-*.yaml")), ids=lambda path: path.stem)
def test_the_sections_of_every_recipe_are_valid(path: Path) -> None:
    made = recipe.load(path)
    settings = train_settings(made)
    if made.model != "tiny":
        assert settings.precision == "bfloat16" and settings.gradient_checkpointing and settings.reference == "stored"

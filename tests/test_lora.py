"""A policy's LoRA under every name that people's files have: it changes the picture, by the same, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from gpo_data import cli, models
from gpo_data.errors import UsageError
from tests.parts.families import Family, build

Layers = dict[str, Tensor]  # of PEFT: <layer>.lora_A.weight, <layer>.lora_B.weight
KOHYA = {"lora_A": "lora_down", "lora_B": "lora_up"}


@pytest.fixture(scope="module", params=["sd-epsilon", "sdxl", "flux-dev", "sana", "sd3"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def layers(family: Family) -> Layers:
    torch.manual_seed(1)
    model = family.model()
    adapter = LoraConfig(r=2, lora_alpha=2, target_modules=list(model.lora_targets), init_lora_weights=False)
    model.denoiser.add_adapter(adapter)
    return {name: value.clone() for name, value in get_peft_model_state_dict(model.denoiser).items()}


def kohya(layers: Layers, prefix: str, alpha: float) -> Layers:
    """Names with _ for each dot; what B is worth is said by alpha over the rank, which is 2."""
    found: Layers = {}
    for name, value in layers.items():
        layer, part, _ = name.rsplit(".", 2)
        flat = prefix + layer.replace(".", "_")
        found[f"{flat}.{KOHYA[part]}.weight"] = value * (2 / alpha if part == "lora_B" else 1)
        found[f"{flat}.alpha"] = torch.tensor(alpha)
    return found


def prefixed(layers: Layers, prefix: str) -> Layers:
    return {prefix + name: value for name, value in layers.items()}


WRITERS: dict[str, Callable[[Layers], Layers]] = {
    "transformer.": lambda layers: prefixed(layers, "transformer."),
    "unet.": lambda layers: prefixed(layers, "unet."),
    "no prefix": lambda layers: prefixed(layers, ""),
    "kohya": lambda layers: kohya(layers, "lora_unet_", 2.0),
    "kohya, alpha": lambda layers: kohya(layers, "lora_unet_", 0.5),
    "kohya, transformer": lambda layers: kohya(layers, "lora_transformer_", 1.0),
}


def drawn(family: Family, policy: Path | None) -> Tensor:
    model = family.model()
    if policy is not None:
        models.load_policy_weights(model, policy)
    latents: Tensor = model.draw(model.encode(["one red circle"]), [1])
    return latents


def write(folder: Path, state: Layers) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / models.LORA_FILE)
    return folder


def test_a_lora_that_loads_changes_the_picture_whatever_its_names(
    family: Family, layers: Layers, tmp_path: Path
) -> None:
    model = family.model()
    saved: Any = {f"{model.denoiser_name}_lora_layers": layers}
    model.pipe.save_lora_weights(tmp_path, **saved)
    base, expected = drawn(family, None), drawn(family, tmp_path)
    assert (expected - base).norm() > 0.01 * base.norm()
    single = (tmp_path / models.LORA_FILE).rename(tmp_path / "anybodys.safetensors")
    assert torch.equal(drawn(family, models.policy_path(str(single))), expected)
    for name, rename in WRITERS.items():
        found = drawn(family, write(tmp_path / "other", rename(layers)))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda told, name=name: f"{name}: {told}")


def test_a_lora_of_another_model_is_refused_in_one_line(family: Family, layers: Layers, tmp_path: Path) -> None:
    first = next(name for name in layers if "lora_A" in name)
    layer = first.removesuffix(".lora_A.weight")
    prefix = f"{family.model().denoiser_name}."
    wrong = {
        "no layer of it": ({"x.y.lora_A.weight": torch.ones(2, 2), "x.y.lora_B.weight": torch.ones(2, 2)}, "policy: "),
        "a layer more": (
            prefixed(layers | {"down.q.lora_A.weight": torch.ones(2, 2)}, prefix),
            "denoiser has no layer down.q; it is of another model",
        ),
        "a shape": (
            prefixed(layers | {first: torch.ones(2, 7)}, prefix),
            rf"expected \d+ in dimension 1, as {layer} has \[\d+, \d+.*\], found \[2, 7\]",
        ),
        "a shape under kohya's names": (
            kohya(layers | {first: torch.ones(2, 7)}, "lora_unet_", 2.0),
            r"found \[2, 7\]",
        ),
        "kohya's of another": ({"lora_unet_mid.lora_down.weight": torch.ones(2, 2)}, "policy: "),
        "nothing": ({"step": torch.ones(1)}, "policy: "),
    }
    model = family.model()
    for name, (state, says) in wrong.items():
        with pytest.raises(UsageError, match=says) as error:
            models.load_policy_weights(model, write(tmp_path, state))
        assert "\n" not in str(error.value), name
    (tmp_path / models.LORA_FILE).write_bytes((tmp_path / models.LORA_FILE).read_bytes()[:-1])
    with pytest.raises(UsageError, match="expected .* bytes, as its header says"):
        models.load_policy_weights(model, tmp_path)


def test_a_recipe_draws_with_a_kohya_lora(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Whoever brings one sees its pictures, and an error where it is of another model."""
    (tmp_path / "lora").mkdir()
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, tmp_path / "lora" / models.LORA_FILE)
    assert cli.main(["shards", str(recipe_file), "--policy", str(tmp_path / "lora")]) == 2
    assert capsys.readouterr().err.startswith("error: policy: ")
    assert not list(tmp_path.glob("lake/*"))  # the name stays free

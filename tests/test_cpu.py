"""The joint blocks for a CPU against diffusers' own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from peft import LoraConfig
from torch import Tensor, nn

from gpo_data.models import cpu

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dual": {"dual_attention_layers": (0, 1)},
    "no norm of q and k": {"qk_norm": None},
    "long": {"sample_size": 18, "pos_embed_max_size": 18},  # 324 tokens of the picture
}


@pytest.fixture(scope="module", params=KINDS)
def original(request: pytest.FixtureRequest) -> SD3Transformer2DModel:
    return new(**KINDS[request.param])


def new(**options: Any) -> SD3Transformer2DModel:
    """Two blocks, the second without the words' end, whose biases and gates are not 0."""
    torch.manual_seed(0)
    config = {
        "sample_size": 6,
        "patch_size": 1,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_attention_heads": 3,
        "attention_head_dim": 16,
        "joint_attention_dim": 24,
        "qk_norm": "rms_norm",
        "caption_projection_dim": 48,
        "pooled_projection_dim": 20,
        "pos_embed_max_size": 6,
    }
    model = SD3Transformer2DModel(**(config | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def quick(model: SD3Transformer2DModel) -> Any:
    quickened = copy.deepcopy(model)
    cpu.quicken(quickened)
    return quickened


def ask(model: Any, dtype: torch.dtype = torch.float32, size: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    side = model.config.sample_size

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    said: Tensor = model(
        hidden_states=noise(size, 4, side, side).to(dtype),
        timestep=1000 * torch.rand(size, generator=generator),
        encoder_hidden_states=noise(size, 5, 24).to(dtype),
        pooled_projections=noise(size, 20).to(dtype),
        return_dict=False,
    )[0]
    return said


def gradients(model: Any, autocast: bool = False) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        said = ask(model).float()
    (said * torch.linspace(-1, 1, said.numel()).view_as(said)).sum().backward()
    return said.detach(), [p.grad for p in model.parameters() if p.requires_grad]


def distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||"""
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-12))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("size", [1, 7])
def test_float32_is_diffusers_own(original: SD3Transformer2DModel, context: Callable[[], Any], size: int) -> None:
    with context():
        theirs = ask(original, size=size)
        ours = ask(quick(original), size=size)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_gradients_are_diffusers_own(original: SD3Transformer2DModel) -> None:
    quickened = quick(original)
    _, theirs = gradients(original)
    _, ours = gradients(quickened)
    largest = max(float(g.norm()) for g in theirs)
    for (name, _), a, b in zip(original.named_parameters(), ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-5 * max(float(b.norm()), 1e-3 * largest), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_half_precision_is_as_close_to_float32(
    original: SD3Transformer2DModel, context: Callable[[], Any], dtype: torch.dtype
) -> None:
    with context():
        exact = ask(original)
        half = copy.deepcopy(original).to(dtype)
        theirs, ours = ask(half, dtype), ask(quick(half), dtype)
    assert ours.dtype == dtype
    assert distance(ours, exact) <= 1.5 * distance(theirs, exact)


def test_autocast_is_as_close_to_float32(original: SD3Transformer2DModel) -> None:
    quickened = quick(original)
    exact, slopes = gradients(copy.deepcopy(original))
    theirs, their_slopes = gradients(original, autocast=True)
    ours, our_slopes = gradients(quickened, autocast=True)
    assert distance(ours, exact) <= 1.5 * distance(theirs, exact)

    def far(found: list[Tensor]) -> float:
        return sum(distance(a, b) for a, b in zip(found, slopes, strict=True) if b.norm() > 0)

    assert far(our_slopes) <= 1.5 * far(their_slopes)
    assert all(a.dtype == torch.float32 for a in our_slopes)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_mode_and_copies_change_no_bit(original: SD3Transformer2DModel, autocast: bool) -> None:
    policy = quick(original)
    frozen = copy.deepcopy(policy).requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        said = ask(policy)
        with torch.no_grad():
            assert torch.equal(ask(policy), said) and torch.equal(ask(frozen), said)
    assert said.requires_grad


def test_with_new_adapters_it_answers_as_without(original: SD3Transformer2DModel) -> None:
    policy = quick(original)
    frozen = copy.deepcopy(policy)
    names = ["to_q", "to_v", "add_k_proj", "to_out.0", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj"]
    policy.requires_grad_(False).add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=names))
    assert torch.equal(ask(policy), ask(frozen))
    trained = [p for p in policy.parameters() if p.requires_grad]
    ask(policy).square().sum().backward()
    assert all(p.grad is not None for p in trained)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1)
        assert not torch.equal(ask(policy), ask(frozen))
        policy.disable_adapters()
        assert torch.equal(ask(policy), ask(frozen))
        policy.enable_adapters()
        with torch.inference_mode():
            torch.testing.assert_close(ask(policy), moved := ask(policy))
        assert not torch.equal(moved, ask(frozen))


def test_checkpointing_gives_the_same_gradients(original: SD3Transformer2DModel) -> None:
    plain, saving = quick(original), quick(original)
    saving.enable_gradient_checkpointing()
    saving.train()
    for a, b in zip(gradients(plain, True)[1], gradients(saving, True)[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_weights_are_used_at_once(dtype: torch.dtype) -> None:
    original, other = new().to(dtype), new().to(dtype)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    quickened, fresh = quick(original), quick(other)
    assert quickened.state_dict().keys() == original.state_dict().keys()
    with torch.inference_mode():
        before = ask(quickened, dtype)
        quickened.load_state_dict(other.state_dict())
        assert torch.equal(ask(quickened, dtype), ask(fresh, dtype))
        assert not torch.equal(before, ask(quickened, dtype))


def test_what_is_not_known_is_left_alone() -> None:
    model = new()
    model.transformer_blocks[0].ff.net[1].p = 0.1
    other = nn.Sequential(nn.Linear(2, 2))
    cpu.quicken(model)
    cpu.quicken(other)
    kinds = [type(block) for block in model.transformer_blocks]
    assert kinds == [JointTransformerBlock, cpu.JointTransformerBlock]
    assert {kind.__name__ for kind in kinds} == set(model._no_split_modules)  # by which sharding finds the blocks
    assert type(other[0]) is nn.Linear


def test_elsewhere_the_block_is_diffusers_own() -> None:
    with torch.device("meta"):
        model = new(num_layers=1)
    cpu.quicken(model)
    block: Any = model.transformer_blocks[0]
    assert type(block) is cpu.JointTransformerBlock
    x, words, temb = (torch.empty(*shape, 48, device="meta") for shape in ((2, 36), (2, 5), (2,)))
    assert block(x, words, temb)[1].grad_fn.__class__.__name__.startswith("AddBackward")  # not one pass of addcmul
    assert isinstance(pickle.loads(pickle.dumps(block)), cpu.JointTransformerBlock)


def test_the_table_is_torchs_gelu() -> None:
    x = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)).mul(3).bfloat16().requires_grad_()
    y = x.detach().requires_grad_()
    made, plain = cpu._TableGelu.apply(x), nn.functional.gelu(y, approximate="tanh")
    assert torch.equal(made, plain)
    for z in (made, plain):
        z.sum().backward()
    torch.testing.assert_close(x.grad, y.grad)

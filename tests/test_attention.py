"""Plain attention against torch's kernel, and the calls that it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gpo_train.attention import LONGEST, PlainAttention


def tensors(tokens: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, tokens, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


def test_values_and_gradients_are_torchs() -> None:
    given = tensors(65)
    with PlainAttention():
        plain = scaled_dot_product_attention(*given, dropout_p=0.0, is_causal=False)
    fused = scaled_dot_product_attention(*given)
    torch.testing.assert_close(plain, fused, rtol=1e-12, atol=1e-12)
    assert "Scaled" not in type(plain.grad_fn).__name__ and "Scaled" in type(fused.grad_fn).__name__
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), given) for x in (plain, fused)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("tokens", "options"),
    [(LONGEST + 1, {}), (9, {"is_causal": True}), (9, {"scale": 0.5}), (9, {"attn_mask": torch.zeros(9, 9).double()})],
)
def test_other_calls_are_torchs_own(tokens: int, options: dict[str, Any]) -> None:
    given = tensors(tokens)
    with PlainAttention():
        made = scaled_dot_product_attention(*given, **options)
    assert torch.equal(made, scaled_dot_product_attention(*given, **options))
    assert "Scaled" in type(made.grad_fn).__name__

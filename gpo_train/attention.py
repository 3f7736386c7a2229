"""Attention of short sequences on the CPU by plain matrix products, as a context.

torch's fused kernel spares memory that short sequences do not need, and on the CPU its backward pass costs six times
its forward one: 30% of a training step of the tiny model, whose sequences have 65 tokens. The policy and its
reference must both be asked inside, or s would not be 0 where they are equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LONGEST = 256  # tokens: above, a head's table of weights, [tokens, tokens], is worth not keeping


class PlainAttention(TorchFunctionMode):
    """Within it `scaled_dot_product_attention` of short [..., tokens, d] and without options is
    softmax(q k' / sqrt d) v in the arithmetic around it (autocast holds). Worth it on the CPU only; every torch call
    pays for the context.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.scaled_dot_product_attention and _plain(*args, **(kwargs or {})):
            query, key, value = args
            return torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1), -1) @ value
        return func(*args, **(kwargs or {}))


def _plain(*tensors: Any, dropout_p: float = 0.0, is_causal: bool = False, **rest: Any) -> bool:
    """Whether a call is the plain case: three short tensors and no option set."""
    if len(tensors) != 3 or dropout_p or is_causal or any(v is not None and v is not False for v in rest.values()):
        return False
    return all(isinstance(x, Tensor) and x.shape[-2] <= LONGEST for x in tensors)

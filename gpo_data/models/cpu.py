"""The joint blocks of a diffusers SD3 transformer, in an arithmetic that suits a CPU.

A block is, for each of its two streams x (picture, words), with shifts, scales s and gates g that are linear in the
embedding of time and prompt, LN the layer norm, a and b the linear layers of the feed-forward:

    x <- x + g_1 attention(LN(x) (1 + s_1) + shift_1)
    x <- x + g_2 b(gelu(a(LN(x) (1 + s_2) + shift_2)))
    attention:  q_i = w_q y_i / rms(y_i),  o = softmax(q k' / sqrt d) v   over the tokens of both streams together

On a CPU the matrix products are the smaller part of what diffusers computes here; the larger are passes over memory
and gelu's tanh. So: modulation and gates are one pass each; the norms of q and k write what attention reads, where it
reads it; attention of short sequences is plain matrix products (torch's fused kernel spares memory that these do not
need, and its backward pass costs six times its forward one); gelu is x sigmoid(2 c (x + 0.044715 x^3)), c^2 = 2 / pi,
or in bfloat16, which has 65,536 values, a table; under `inference_mode` oneDNN applies it inside the product.

What always holds: parameters, their names and the rounded mathematics are diffusers' own, nothing derived from a
weight is kept, and `no_grad` changes no bit, so that a policy and a reference of equal weights answer equally. On
other devices, and with options that are not computed here, a block is diffusers' own.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from diffusers.models import attention
from diffusers.models.activations import GELU
from diffusers.models.attention_processor import JointAttnProcessor2_0
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LONGEST = 256  # tokens: above, a head's table of weights, [tokens, tokens], is worth not keeping
SLOPE = math.sqrt(8 / math.pi)  # gelu(x) = x sigmoid(SLOPE (x + CUBIC x^3))
CUBIC = 0.044715


def quicken(denoiser: nn.Module) -> None:
    """Have the denoiser's joint blocks computed as here wherever they meet CPU tensors; others are left as they are."""
    for block in denoiser.modules():
        if type(block) is attention.JointTransformerBlock and _known(block):
            block.__class__ = JointTransformerBlock


class JointTransformerBlock(attention.JointTransformerBlock):
    """diffusers' block with another `forward`. It keeps the name, by which sharding finds the blocks."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        elsewhere = hidden_states.device.type != "cpu" or torch.compiler.is_compiling()
        if elsewhere or joint_attention_kwargs or self._chunk_size is not None:
            theirs: tuple[Tensor | None, Tensor] = super().forward(
                hidden_states, encoder_hidden_states, temb, joint_attention_kwargs
            )
            return theirs
        picture, words = hidden_states, encoder_hidden_states
        if self.use_dual_attention:
            shift, scale, gate, shift_2, scale_2, gate_2, shift_own, scale_own, gate_own = _linear(self.norm1, temb, 9)
        else:
            shift, scale, gate, shift_2, scale_2, gate_2 = _linear(self.norm1, temb, 6)
        normed = self.norm1.norm(picture)
        if self.context_pre_only:
            words_scale, words_shift = _linear(self.norm1_context, temb, 2)
        else:
            words_shift, words_scale, *words_rest = _linear(self.norm1_context, temb, 6)
        normed_words = torch.addcmul(words_shift, self.norm1_context.norm(words), 1 + words_scale)

        mixed, words_mixed = _attend(self.attn, torch.addcmul(shift, normed, 1 + scale), normed_words)
        picture = torch.addcmul(picture, gate, mixed)
        if self.use_dual_attention:
            mixed, _ = _attend(self.attn2, torch.addcmul(shift_own, normed, 1 + scale_own), None)
            picture = torch.addcmul(picture, gate_own, mixed)
        fed = _feed(self.ff, torch.addcmul(shift_2, self.norm2(picture), 1 + scale_2))
        picture = torch.addcmul(picture, gate_2, fed)
        if self.context_pre_only:
            return None, picture

        gate, shift_2, scale_2, gate_2 = words_rest
        words = torch.addcmul(words, gate, self.attn.to_add_out(words_mixed))
        fed = _feed(self.ff_context, torch.addcmul(shift_2, self.norm2_context(words), 1 + scale_2))
        return torch.addcmul(words, gate_2, fed), picture


def _known(block: Any) -> bool:
    """Whether all of a block's parts are those that are computed here."""
    attentions = [block.attn] + ([block.attn2] if block.use_dual_attention else [])
    norms = [
        norm
        for part in attentions
        for norm in (part.norm_q, part.norm_k, part.norm_added_q, part.norm_added_k)
        if norm is not None
    ]
    feeds = [block.ff] if block.context_pre_only else [block.ff, block.ff_context]
    return (
        all(isinstance(part.processor, JointAttnProcessor2_0) and not part.dropout for part in attentions)
        and all(isinstance(norm, RMSNorm) and norm.weight is not None and norm.bias is None for norm in norms)
        and all(isinstance(feed.net[0], GELU) and feed.net[0].approximate == "tanh" for feed in feeds)
        and all(len(feed.net) == 3 and feed.net[1].p == 0 for feed in feeds)
    )


def _linear(norm: Any, temb: Tensor, parts: int) -> tuple[Tensor, ...]:
    """What an adaptive norm makes of the embedding [B, D] of time and prompt: so many [B, 1, D]."""
    made: Tensor = norm.linear(norm.silu(temb))
    return made[:, None].chunk(parts, dim=2)


def _attend(attn: Any, picture: Tensor, words: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Attention over the tokens of both streams; the words' half without its last product."""
    layers = [(attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None)]
    added: list[Any] = [(None, None)] * 3
    if words is not None:
        added = [(attn.add_q_proj, attn.norm_added_q), (attn.add_k_proj, attn.norm_added_k), (attn.add_v_proj, None)]
    scale = (attn.inner_dim // attn.heads) ** -0.5
    q, k, v = (
        _Heads.apply(
            attn.heads,
            factor,
            getattr(norm, "eps", 0.0),
            layer(picture),
            getattr(norm, "weight", None),
            None if more is None else more(words),
            getattr(more_norm, "weight", None),
        )
        for factor, (layer, norm), (more, more_norm) in zip((scale, 1.0, 1.0), layers, added, strict=True)
    )
    if q.shape[2] <= LONGEST:
        mixed = _ShortAttention.apply(q, k, v)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    mixed, *rest = mixed.transpose(1, 2).split([picture.shape[1], q.shape[2] - picture.shape[1]], dim=1)
    return attn.to_out[0](mixed.flatten(2)), rest[0].flatten(2) if words is not None else None


class _Heads(torch.autograd.Function):
    """factor w y / rms(y) of one or two streams y [B, T, H d], head by head, as one [B, H, sum of T, d]."""

    @staticmethod
    def forward(ctx: Any, heads: int, factor: float, eps: float, *streams: Tensor | None) -> Tensor:
        """`streams`: y, w [d] (None: y as it is) and, of the second, y (None: there is none) and w."""
        parts = [(y.unflatten(2, (heads, -1)), w) for y, w in (streams[:2], streams[2:]) if y is not None]
        first = parts[0][0]
        size, _, _, width = first.shape
        lengths = [y.shape[1] for y, _ in parts]
        made: Tensor = first.new_empty(size, heads, sum(lengths), width)
        kept: list[Tensor | None] = []
        for (y, w), out in zip(parts, made.transpose(1, 2).split(lengths, dim=1), strict=True):
            if w is None:
                torch.mul(y, factor, out=out) if factor != 1 else out.copy_(y)
                kept += [None, None, None]
                continue
            inverse = torch.linalg.vector_norm(y, dim=-1, keepdim=True).float().square_().div_(width)
            inverse = inverse.add_(eps).rsqrt_().to(y.dtype)
            w = (w * factor).to(y.dtype)
            torch.mul(y * inverse, w, out=out)
            kept += [y, inverse, w]
        ctx.save_for_backward(*kept)
        ctx.lengths, ctx.factor, ctx.kinds = lengths, factor, [None if w is None else w.dtype for _, w in parts]
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        found: list[Tensor | None] = []
        for i, g in enumerate(gradient.transpose(1, 2).split(ctx.lengths, dim=1)):
            y, inverse, w = kept[3 * i : 3 * i + 3]
            if y is None:
                found += [(g * ctx.factor if ctx.factor != 1 else g).flatten(2), None]
                continue
            unit = y * inverse
            moved = unit * g  # with respect to w, of every token
            along = (moved @ w).div_(len(w))[..., None]
            dy = (g * w).addcmul_(unit, along, value=-1).mul_(inverse)
            dw = (moved.flatten(0, -2).sum(0) * ctx.factor).to(ctx.kinds[i])
            found += [dy.flatten(2), dw]
        return None, None, None, *found, *[None] * (4 - len(found))


class _ShortAttention(torch.autograd.Function):
    """softmax(q k') v of [B, H, T, d]; the softmax is float32, which is also the faster."""

    @staticmethod
    def forward(ctx: Any, *heads: Tensor) -> Tensor:
        q, k, v = (x.flatten(0, 1) for x in heads)
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1, dtype=torch.float32).to(q.dtype)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).view_as(heads[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, k, v, weights = ctx.saved_tensors
        g = gradient.flatten(0, 1)
        moved = torch.bmm(g, v.transpose(1, 2))
        moved = torch.ops.aten._softmax_backward_data(moved, weights, -1, weights.dtype)
        found = torch.bmm(moved, k), torch.bmm(moved.transpose(1, 2), q), torch.bmm(weights.transpose(1, 2), g)
        return tuple(x.view_as(gradient) for x in found)


def _feed(feed: Any, x: Tensor) -> Tensor:
    layer, last = feed.net[0].proj, feed.net[2]
    if torch.is_inference_mode_enabled() and _fuses(layer, x):
        hidden = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], "tanh")
    else:
        hidden = layer(x)
        hidden = _TableGelu.apply(hidden) if hidden.dtype == torch.bfloat16 else _Gelu.apply(hidden)
    made: Tensor = last(hidden)
    return made


def _fuses(layer: nn.Module, x: Tensor) -> bool:
    """Whether oneDNN has the product with gelu inside (few have it in float16), and it pays: with AVX2 it does not."""
    return (
        type(layer) is nn.Linear
        and x.dtype == layer.weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


class _Gelu(torch.autograd.Function):
    """gelu(x) = x s, s = sigmoid(g(x)), and its derivative s + x s (1 - s) g'(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = torch.addcmul(x.new_full((), SLOPE), x, x, value=SLOPE * CUBIC).mul_(x).sigmoid_()
        if not ctx.needs_input_grad[0]:
            return s.mul_(x)
        made = x * s
        ctx.save_for_backward(x, s, made)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, s, made = ctx.saved_tensors
        slope = torch.addcmul(x.new_full((), SLOPE), x, x, value=3 * SLOPE * CUBIC).mul_(made)
        return slope.addcmul_(slope, s, value=-1).add_(s).mul_(gradient)


class _TableGelu(torch.autograd.Function):
    """gelu of bfloat16 and its derivative, looked up: exactly torch's values, the derivative's rounded once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        values, _ = _tables()
        index = x.contiguous().view(torch.int16).flatten().int().add_(1 << 15)
        ctx.save_for_backward(index)
        return values.index_select(0, index).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (index,) = ctx.saved_tensors
        return _tables()[1].index_select(0, index).view_as(gradient).mul_(gradient)


@functools.cache
def _tables() -> tuple[Tensor, Tensor]:
    """gelu and its derivative at every bfloat16, in the order of its bits read as int16."""
    with torch.inference_mode(False), torch.no_grad():
        x = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16).float()
        slopes = torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate="tanh")
        return F.gelu(x, approximate="tanh").bfloat16(), slopes.bfloat16()

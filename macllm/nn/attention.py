"""Self-attention and cross-attention."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.attention import attention
from macllm.ops.attention_mask import AttentionMask, MaskArray
from macllm.ops.head_params import HeadParams
from macllm.ops.kv import KV, Dense
from macllm.ops.linear import linear, linears
from macllm.ops.qk_norm_rope import qk_norm_rope, split_heads
from macllm.ops.weights import NormWeight

from .linear import Linear
from .mask import Masks
from .norm import make_norm
from .position import RoPE, Span
from .spec import AttentionSpec, NormSpec, QKNormSpec
from .state.key_values import KeyValues


class Projections(nn.Module):
    """Queries, keys, values and output of one attention layer, and the norms on queries and keys."""

    LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __init__(self, dim: int, spec: AttentionSpec):
        super().__init__()
        self.spec = s = spec
        self.q_proj = Linear(dim, s.num_heads * s.head_dim, bias=s.qkv_bias)
        self.k_proj = Linear(dim, s.num_kv_heads * s.head_dim, bias=s.qkv_bias)
        self.v_proj = Linear(dim, s.num_kv_heads * s.head_dim, bias=s.qkv_bias)
        self.o_proj = Linear(s.num_heads * s.head_dim, dim, bias=s.out_bias)
        whole, head = _qk_norms(s.qk_norm)
        self.q_norm = make_norm(s.num_heads * s.head_dim, whole)
        self.k_norm = make_norm(s.num_kv_heads * s.head_dim, whole)
        self.q_head_norm, self.k_head_norm = make_norm(s.head_dim, head), make_norm(s.head_dim, head)

    def queries(self, q: mx.array) -> mx.array:
        """Projected (B, L, H * Dh) -> (B, H, L, Dh), normed, not yet rotated."""
        return self.q_head_norm(split_heads(self.q_norm(q), self.spec.head_dim))

    def keys_and_values(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Projected (B, L, K * Dh) -> (B, K, L, Dh) twice; keys normed, not yet rotated."""
        return self.k_head_norm(split_heads(self.k_norm(k), self.spec.head_dim)), split_heads(v, self.spec.head_dim)

    def output(self, y: mx.array, residual: mx.array | None) -> mx.array:
        """residual + output projection of (B, L, H * Dh): (B, L, D)."""
        return linear(y, self.o_proj.weights, residual=residual)

    def attend(self, q: mx.array, kv: KV, mask: MaskArray | AttentionMask) -> mx.array:
        """Attention of q (B, H, L, Dh) over `kv`: (B, L, H * Dh)."""
        cap = self.spec.logit_softcap
        y = attention(q, kv, scale=self.spec.scale, mask=mask, softcap=cap, training=self.training)  # (B, H, L, Dh)
        return y.transpose(0, 2, 1, 3).flatten(2)


class SelfAttention(Projections):
    """Grouped-query attention (arXiv:2305.13245) of a sequence over itself and its cache.

    QK norm always comes before RoPE. A norm without weights could come after it with the same result, since a rotation
    keeps the length of a head.
    """

    def __init__(self, dim: int, spec: AttentionSpec):
        super().__init__(dim, spec)
        self.rotate = RoPE(spec.rope) if spec.rope else None

    def __call__(
        self,
        x: mx.array,
        masks: Masks,
        state: KeyValues | None = None,
        *,
        norm: NormWeight = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """residual + attention(norm(x)): (B, L, D) -> (B, L, D). Appends to `state`."""
        weights = [self.q_proj.weights, self.k_proj.weights, self.v_proj.weights]
        q, k, v = linears(x, weights, norm=norm)  # (B, L, H * Dh), (B, L, K * Dh) twice
        q, k = self.q_norm(q), self.k_norm(k)  # (B, L, H * Dh), (B, L, K * Dh)
        y = masks.of_each_sequence(partial(self._heads, state=state), q, k, v)  # (B, L, H * Dh)
        return self.output(y, residual)

    def _heads(self, q: mx.array, k: mx.array, v: mx.array, masks: Masks, state: KeyValues | None) -> mx.array:
        """Attention of projected (B, L, H * Dh) and (B, L, K * Dh) twice: (B, L, H * Dh). Appends to `state`."""
        span, head_dim = masks.span, self.spec.head_dim
        packing = None if state is None else state.packing(head_dim)
        q, rows = qk_norm_rope(q, k, v, self.head_params(span), span.first_position(), packing)  # (B, H, L, Dh)
        kv, start = (Dense(*rows), span.offset) if state is None else state.store(rows, head_dim)  # (B, K, S, Dh)
        if self.spec.temperature is not None:
            q = (q * self._temperatures(span)).astype(q.dtype)  # (B, H, L, Dh)
        return self.attend(q, kv, masks.get(self.spec.mask, start, q.dtype, is_cached=state is not None))

    def head_params(self, span: Span) -> HeadParams:
        """Norms and rotation of the heads of `span`."""
        norms = self.q_head_norm.weights, self.k_head_norm.weights
        if self.rotate is None:
            return HeadParams(self.spec.head_dim, *norms)
        wavelengths, magnitude = self.rotate.table(span)
        return HeadParams(self.spec.head_dim, *norms, wavelengths, magnitude, self.rotate.spec.interleaved)

    def _temperatures(self, span: Span) -> mx.array:
        """Query scales by position: (L, 1), or (B, 1, L, 1) if rows are padded."""
        t, position = self.spec.temperature, span.positions()
        assert t is not None
        temperature = (1 + t.scale * mx.log1p(mx.floor((position + 1) / t.floor)))[..., None]
        return temperature if temperature.ndim == 2 else temperature[:, None]


class CrossAttention(Projections):
    """Attention over the output of an encoder, whose keys and values are computed once."""

    def remember(self, memory: mx.array) -> Dense:
        """Keys and values of `memory` (B, S, D): (B, K, S, Dh) twice."""
        return Dense(*self.keys_and_values(*linears(memory, [self.k_proj.weights, self.v_proj.weights])))

    def __call__(
        self,
        x: mx.array,
        memory: KV,
        mask: mx.array | None,
        *,
        norm: NormWeight = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """residual + attention(norm(x)) over `memory`: (B, L, D) -> (B, L, D)."""
        q = self.queries(linear(x, self.q_proj.weights, norm=norm))  # (B, H, L, Dh)
        return self.output(self.attend(q, memory, mask), residual)


def _qk_norms(spec: QKNormSpec | None) -> tuple[NormSpec | None, NormSpec | None]:
    if spec is None:
        return None, None
    return (spec.norm, None) if spec.over == "projection" else (None, spec.norm)

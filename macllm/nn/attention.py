"""Attention over a sequence, or over another one's."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.attention import Mask, attention
from macllm.ops.kv import KV, Dense

from .cache import LayerCache
from .linear import Linear
from .mask import Masks
from .norm import make_norm
from .position import RoPE, Span
from .spec import AttentionSpec, NormSpec, QKNormSpec


class Projections(nn.Module):
    """Queries, keys, values and output of one attention layer, and the norms on queries and keys."""

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

    def queries(self, x: mx.array) -> mx.array:
        """(B, L, D) -> (B, H, L, Dh), normed, not yet rotated."""
        return self.q_head_norm(self._heads(self.q_norm(self.q_proj(x))))

    def keys_and_values(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """(B, L, D) -> (B, K, L, Dh) twice; keys normed, not yet rotated."""
        return self.k_head_norm(self._heads(self.k_norm(self.k_proj(x)))), self._heads(self.v_proj(x))

    def attend(self, q: mx.array, kv: KV, mask: Mask) -> mx.array:
        """(B, H, L, Dh) over `kv` -> (B, L, D)."""
        y = attention(q, kv, scale=self.spec.scale, mask=mask, softcap=self.spec.logit_softcap)
        return self.o_proj(y.transpose(0, 2, 1, 3).flatten(2))

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], -1, self.spec.head_dim).transpose(0, 2, 1, 3)


class SelfAttention(Projections):
    """Grouped-query attention (arXiv:2305.13245) of a sequence over itself and what its cache holds.

    QK norm always comes before RoPE. A norm with weights must; one without may sit on either side, since
    a rotation leaves the length of a head alone.
    """

    def __init__(self, dim: int, spec: AttentionSpec):
        super().__init__(dim, spec)
        self.rotate = RoPE(spec.rope) if spec.rope else None

    def __call__(self, x: mx.array, masks: Masks, cache: LayerCache | None = None) -> mx.array:
        """(B, L, D) -> (B, L, D). Appends to `cache`."""
        span = masks.span
        q, (k, v) = self.queries(x), self.keys_and_values(x)
        if self.rotate is not None:
            q, k = self.rotate(q, span), self.rotate(k, span)
        if self.spec.temperature is not None:
            q = (q * self._temperature(span)).astype(q.dtype)
        kv, start = (Dense(k, v), span.offset) if cache is None else cache.append(k, v)
        return self.attend(q, kv, masks.get(self.spec.mask, start, q.dtype))

    def _temperature(self, span: Span) -> mx.array:
        """(L, 1), or (B, 1, L, 1) where rows are padded."""
        t, position = self.spec.temperature, span.positions()
        assert t is not None
        heat = (1 + t.scale * mx.log1p(mx.floor((position + 1) / t.floor)))[..., None]
        return heat if heat.ndim == 2 else heat[:, None]


class CrossAttention(Projections):
    """Attention over the output of an encoder, whose keys and values are computed once."""

    def remember(self, memory: mx.array) -> Dense:
        """The keys and values of `memory` (B, S, D)."""
        return Dense(*self.keys_and_values(memory))

    def __call__(self, x: mx.array, memory: KV, mask: mx.array | None) -> mx.array:
        """(B, L, D) -> (B, L, D)."""
        return self.attend(self.queries(x), memory, mask)


def _qk_norms(spec: QKNormSpec | None) -> tuple[NormSpec | None, NormSpec | None]:
    if spec is None:
        return None, None
    return (spec.norm, None) if spec.over == "projection" else (None, spec.norm)

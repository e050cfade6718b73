"""Attention over a sequence, or over another one's."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.attention import attention
from macllm.ops.kv import KV, Dense
from macllm.ops.qkv_post import Rules, qkv_post, qkv_post_packed
from macllm.ops.sight import Mask, Sight

from .cache import LayerCache
from .linear import Linear
from .mask import Masks
from .norm import RMSNorm, make_norm
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

    def queries(self, q: mx.array) -> mx.array:
        """Projected (B, L, H * Dh) -> (B, H, L, Dh), normed, not yet rotated."""
        return self.q_head_norm(self._heads(self.q_norm(q)))

    def keys_and_values(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Projected (B, L, K * Dh) -> (B, K, L, Dh) twice; keys normed, not yet rotated."""
        return self.k_head_norm(self._heads(self.k_norm(k))), self._heads(v)

    def attend(self, q: mx.array, kv: KV, mask: Mask | Sight) -> mx.array:
        """(B, H, L, Dh) over `kv` -> (B, L, H * Dh), before the last projection."""
        y = attention(q, kv, scale=self.spec.scale, mask=mask, softcap=self.spec.logit_softcap)
        return y.transpose(0, 2, 1, 3).flatten(2)

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
        return self.o_proj(self.mix((self.q_proj(x), self.k_proj(x), self.v_proj(x)), masks, cache))

    def mix(self, qkv: tuple[mx.array, mx.array, mx.array], masks: Masks, cache: LayerCache | None) -> mx.array:
        """Queries, keys and values as projected -> (B, L, H * Dh), before the last projection. Appends to `cache`."""
        span = masks.span
        q, kv, start = self._fused(qkv, span, cache) or self._one_by_one(qkv, span, cache)
        if self.spec.temperature is not None:
            q = (q * self._temperature(span)).astype(q.dtype)
        return self.attend(q, kv, masks.get(self.spec.mask, start, q.dtype, is_cached=cache is not None))

    def _one_by_one(
        self, qkv: tuple[mx.array, mx.array, mx.array], span: Span, cache: LayerCache | None
    ) -> tuple[mx.array, KV, int]:
        """Queries, what they look at, and the slot that it begins with."""
        q, (k, v) = self.queries(qkv[0]), self.keys_and_values(*qkv[1:])
        if self.rotate is not None:
            q, k = self.rotate(q, span), self.rotate(k, span)
        return (q, Dense(k, v), span.offset) if cache is None else (q, *cache.append(k, v))

    def _fused(
        self, qkv: tuple[mx.array, mx.array, mx.array], span: Span, cache: LayerCache | None
    ) -> tuple[mx.array, KV, int] | None:
        """The same by one op; None where there is none."""
        rules = self._head_rules(span)
        if rules is None:
            return None
        q, k, v = self.q_norm(qkv[0]), self.k_norm(qkv[1]), qkv[2]
        packing = (0, 0) if cache is None else cache.codec.packing(self.spec.head_dim)
        if cache is not None and packing[0]:
            packed = qkv_post_packed(q, k, v, rules, span.first(), packing)
            return packed and (packed.queries, *cache.store((*packed.keys, *packed.values), self.spec.head_dim))
        done = qkv_post(q, k, v, rules, span.first())
        if done is None:
            return None
        q, k, v = done
        return (q, Dense(k, v), span.offset) if cache is None else (q, *cache.append(k, v))

    def _head_rules(self, span: Span) -> Rules | None:
        """What is done to heads, if it is more than to part them and such that one op can do it."""
        norms = [norm for norm in (self.q_head_norm, self.k_head_norm) if isinstance(norm, RMSNorm)]
        if not (norms or self.rotate) or len(norms) == 1 or any("weight" not in norm for norm in norms):
            return None
        if not norms and not isinstance(self.q_head_norm, nn.Identity):
            return None
        wavelengths, magnitude = (None, 1.0) if self.rotate is None else self.rotate.table(span)
        rules = Rules(self.spec.head_dim, wavelengths=wavelengths, magnitude=magnitude)
        if self.rotate is not None:
            rules = rules._replace(interleaved=self.rotate.spec.interleaved)
        if not norms:
            return rules
        q, k = norms
        return rules._replace(q_norm=q.weight, k_norm=k.weight, eps=q.eps, shift=float(q.unit_offset))

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
        return Dense(*self.keys_and_values(self.k_proj(memory), self.v_proj(memory)))

    def __call__(self, x: mx.array, memory: KV, mask: mx.array | None) -> mx.array:
        """(B, L, D) -> (B, L, D)."""
        return self.o_proj(self.attend(self.queries(self.q_proj(x)), memory, mask))


def _qk_norms(spec: QKNormSpec | None) -> tuple[NormSpec | None, NormSpec | None]:
    if spec is None:
        return None, None
    return (spec.norm, None) if spec.over == "projection" else (None, spec.norm)

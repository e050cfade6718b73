"""softmax(softcap(scale * q k^T) + mask) v, over keys and values in any form."""

from __future__ import annotations

from typing import Literal

import mlx.core as mx

from .dispatch import choice, native
from .kv import KV, Dense, Quantized

Mask = mx.array | Literal["causal"] | None


def attention(q: mx.array, kv: KV, *, scale: float, mask: Mask = None, softcap: float | None = None) -> mx.array:
    """Attention of H query heads over K key/value heads (H a multiple of K): (B, H, L, Dh) -> (B, H, L, Dh).

    `mask` broadcasts to (B, H, L, S): bool (True is seen), or added to the scores; "causal" aligns the
    last query with the last key. `softcap` bounds the scores to +-softcap before the mask.
    Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped heads: arXiv:2305.13245; softcap: arXiv:2408.00118, 2.
    """
    dense = kv.dense(q.dtype) if isinstance(kv, Quantized) else kv
    kernels = native(q, dense.keys, dense.values) if _has_kernel(q, dense, mask) else None
    if kernels is not None:
        shown, causal = (mask, False) if isinstance(mask, mx.array) else (None, mask is not None)
        return kernels.attention(q, dense.keys, dense.values, scale, causal, mask=shown, softcap=softcap or 0.0)
    if softcap is None and choice() != "reference":
        return mx.fast.scaled_dot_product_attention(q, dense.keys, dense.values, scale=scale, mask=mask)
    return attention_reference(q, dense.keys, dense.values, scale=scale, mask=mask, softcap=softcap)


def _has_kernel(q: mx.array, kv: Dense, mask: Mask) -> bool:
    plain = mask.dtype == mx.bool_ if isinstance(mask, mx.array) else True
    return plain and kv.keys.shape == kv.values.shape and q.shape[3] == kv.keys.shape[3]


def attention_reference(
    q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask, softcap: float | None
) -> mx.array:
    """The same from its definition, with all scores in memory; softmax in float32."""
    B, H, L, Dh = q.shape
    K, S = k.shape[1], k.shape[2]
    scores = (q.reshape(B, K, H // K, L, Dh) * scale) @ k[:, :, None].swapaxes(-1, -2)
    if softcap is not None:
        scores = softcap * mx.tanh(scores / softcap)
    if isinstance(mask, str):
        mask = mx.arange(S - L, S)[:, None] >= mx.arange(S)
    if mask is not None:
        grouped = mx.broadcast_to(mask, (B, H, L, S)).reshape(scores.shape)
        scores = mx.where(grouped, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + grouped
    weights = mx.softmax(scores, axis=-1, precise=True)
    return (weights @ v[:, :, None]).reshape(B, H, L, v.shape[-1])

"""softmax(softcap(scale * q k^T) + mask) v, over keys and values in any form."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, TypedDict

import mlx.core as mx

from . import query_blocks
from .attention_mask import AttentionMask, MaskArray
from .dispatch import choice, native
from .flash import flash
from .kv import KV, Quantized


def attention(
    q: mx.array,
    kv: KV,
    *,
    scale: float,
    mask: MaskArray | AttentionMask = None,
    softcap: float | None = None,
    sinks: mx.array | None = None,
    training: bool = False,
) -> mx.array:
    """Attention of H query heads over K key/value heads (K divides H): (B, H, L, Dh) -> (B, H, L, Dh).

    `mask` broadcasts to (B, H, L, S): bool (True is seen), or added to the scores; "causal" aligns the last query with
    the last key. An `AttentionMask` gives the same as numbers. `softcap` bounds the scores to +-softcap before the
    mask. `sinks` (H,) are the scores of one more key per head, which every query sees and whose value is 0.
    Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped heads: arXiv:2305.13245; softcap: arXiv:2408.00118, 2;
    sinks: arXiv:2508.10925, 2.2. In `training`, memory is linear in the length also without kernels.
    """
    structured = AttentionMask.of(mask)
    y = None if structured is None else flash(q, kv, structured, scale=scale, softcap=softcap or 0.0, sinks=sinks)
    if y is not None:
        return y
    params: SoftmaxParams = {"scale": scale, "softcap": softcap, "sinks": sinks}
    kernels = native(q, sinks)
    y = None if kernels is None else _native(kernels, q, kv, params, structured or mask)
    if y is not None:
        return y
    dense = kv.dense(q.dtype) if isinstance(kv, Quantized) else kv
    if training and structured is not None and query_blocks.supports(q, dense, structured):
        shared = () if sinks is None else (sinks,)
        return query_blocks.attention_in_blocks(partial(_stock, scale, softcap), q, dense, structured, *shared)
    mask = mask.dense() if isinstance(mask, AttentionMask) else mask
    return _stock(scale, softcap, mask, q, dense.keys, dense.values, sinks)


def _stock(
    scale: float,
    softcap: float | None,
    mask: MaskArray,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    sinks: mx.array | None = None,
) -> mx.array:
    """MLX's own attention, or that of the definition."""
    if softcap is None and choice() != "reference":
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)
    return attention_reference(q, k, v, scale=scale, mask=mask, softcap=softcap, sinks=sinks)


class SoftmaxParams(TypedDict):
    """Parameters of the softmax over scores."""

    scale: float
    softcap: float | None
    sinks: mx.array | None


def _native(
    kernels: ModuleType, q: mx.array, kv: KV, params: SoftmaxParams, mask: MaskArray | AttentionMask
) -> mx.array | None:
    """The native kernels' result; None if they do not support these keys and values, or this mask."""
    seen = _native_mask(mask)
    if seen is None:
        return None
    options = {**seen, "softcap": params["softcap"] or 0.0, "sinks": params["sinks"]}
    if isinstance(kv, Quantized):
        if kv.keys[1].dtype != mx.float32:
            return None
        return kernels.attention_packed(q, [*kv.keys, *kv.values], kv.bits, kv.group_size, params["scale"], **options)
    plain = kv.keys.dtype == kv.values.dtype == mx.float32 and kv.keys.shape == kv.values.shape
    if not plain or q.shape[3] != kv.keys.shape[3]:
        return None
    return kernels.attention(q, kv.keys, kv.values, params["scale"], **options)


def _native_mask(mask: MaskArray | AttentionMask) -> dict[str, Any] | None:
    """The kernels' mask options: numbers, not an array, if all rows are masked alike; None if unsupported."""
    if isinstance(mask, AttentionMask):
        if mask.lengths is None and len(mask.first) == 1 and mask.first[0] <= 0:
            return {"causal": mask.causal, "window": mask.window, "chunk": mask.chunk, "begin": mask.first[0]}
        array = mask.dense()
        return None if isinstance(array, str) else {"mask": array}
    return {"mask": mask} if isinstance(mask, mx.array) and mask.dtype == mx.bool_ else None


def attention_reference(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: MaskArray,
    softcap: float | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """`attention` from its definition, with all scores in memory; softmax in float32."""
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
    if sinks is not None:
        sunk = mx.broadcast_to(sinks.reshape(1, K, -1, 1, 1), (*scores.shape[:-1], 1)).astype(scores.dtype)
        scores = mx.concatenate([scores, sunk], axis=-1)
    weights = mx.softmax(scores, axis=-1, precise=True)[..., :S]
    return (weights @ v[:, :, None]).reshape(B, H, L, v.shape[-1])

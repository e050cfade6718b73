"""Fused QK norm, RoPE and (B, L, H * Dh) -> (B, H, L, Dh); optionally quantizes keys and values."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from . import dispatch
from .head_params import HeadParams, Packing
from .kv import quantize
from .metal import launch
from .metal.qk_norm_rope import qkv_post as plan
from .norm import normalize
from .rope import rope, rope_reference
from .weights import NormWeight, RMSNormWeight

Rows = tuple[mx.array, ...]


def qk_norm_rope(
    q: mx.array, k: mx.array, v: mx.array, heads: HeadParams, offset: int | mx.array, packing: Packing | None = None
) -> tuple[mx.array, Rows]:
    """(B, L, H * Dh), 2x (B, L, K * Dh) -> queries (B, H, L, Dh), and keys then values (B, K, L, Dh).

    `offset` is the position of the first token, one for all rows or (B,). With `packing`, keys and values are
    quantized: words, scales and biases of each, as `mx.quantize` returns them.
    """
    if packing is not None and _supports("qkv_post_packed", q, k, heads):
        call = plan.packed(q, k, v, heads, mx.array(offset).reshape(-1), packing)
        made = dispatch.attempt("qkv_post_packed", lambda: launch(call))
        if made is not None:
            return made[0], tuple(made[1:])
    rows = _fused(q, k, v, heads, offset) or _composed(q, k, v, heads, offset)
    if packing is None:
        return rows[0], rows[1:]
    return rows[0], (*quantize(rows[1], *packing), *quantize(rows[2], *packing))


def _supports(op: str, q: mx.array, k: mx.array, heads: HeadParams) -> bool:
    return plan.supports(q, k, heads) and dispatch.metal(op, q.dtype, q.shape[0] * q.shape[1])


def _composed(q: mx.array, k: mx.array, v: mx.array, heads: HeadParams, offset: int | mx.array) -> Rows:
    def one(x: mx.array, norm: NormWeight) -> mx.array:
        x = normalize(split_heads(x, heads.head_dim), norm)
        if heads.wavelengths is None:
            return x
        if heads.magnitude != 1.0:
            n = 2 * heads.wavelengths.size
            x = mx.concatenate([x[..., :n] * heads.magnitude, x[..., n:]], axis=-1)
        return rope(x, heads.wavelengths, offset, interleaved=heads.interleaved)

    return one(q, heads.q_norm), one(k, heads.k_norm), split_heads(v, heads.head_dim)


def split_heads(x: mx.array, head_dim: int) -> mx.array:
    """(B, L, H * Dh) -> (B, H, L, Dh)."""
    return x.reshape(*x.shape[:2], -1, head_dim).transpose(0, 2, 1, 3)


def _fused(q: mx.array, k: mx.array, v: mx.array, heads: HeadParams, offset: int | mx.array) -> Rows | None:
    if not _supports("qkv_post", q, k, heads):
        return None
    at = mx.array(offset).reshape(-1)
    norms = [norm.weight for norm in (heads.q_norm, heads.k_norm) if isinstance(norm, RMSNormWeight)]

    def run(q: mx.array, k: mx.array, v: mx.array, *norms: mx.array) -> Rows:
        return tuple(launch(plan.forward(q, k, v, heads, at)))

    def gradients(primals: Rows, cotangents: Rows, _: Rows) -> Rows:
        arrays: dict[str, mx.array] = {"q": primals[0], "k": primals[1]}
        arrays |= zip(("dq", "dk", "dv"), cotangents, strict=True)
        dq, dk, dv, parts = launch(plan.backward(arrays, heads, at))
        count, sums = primals[0].shape[2] // heads.head_dim, parts.sum(0)
        of_norms = sums[:count].sum(0), sums[count:].sum(0)
        return dq, dk, dv, *(d.astype(norm.dtype) for d, norm in zip(of_norms, primals[3:], strict=False))

    op: Any = mx.custom_function(run)
    op.vjp(gradients)
    return dispatch.attempt("qkv_post", lambda: tuple(op(q, k, v, *norms)))


def qk_norm_rope_reference(
    q: mx.array, k: mx.array, v: mx.array, heads: HeadParams, offset: int | mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """`qk_norm_rope` from its definition, in float32: (B, H, L, Dh), and (B, K, L, Dh) twice."""

    def one(x: mx.array, norm: NormWeight) -> mx.array:
        x = normalize(split_heads(x, heads.head_dim).astype(mx.float32), norm)
        if heads.wavelengths is not None:
            n = 2 * heads.wavelengths.size
            x = mx.concatenate([x[..., :n] * heads.magnitude, x[..., n:]], axis=-1)
            x = rope_reference(x, heads.wavelengths, offset, interleaved=heads.interleaved)
        return x

    return one(q, heads.q_norm).astype(q.dtype), one(k, heads.k_norm).astype(k.dtype), split_heads(v, heads.head_dim)

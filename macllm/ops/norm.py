"""Norms over the last axis, computed in float32 and returned in the input's dtype."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from .dispatch import choice, native
from .weights import LayerNormWeight, NormWeight, RMSNormWeight


def normalize(x: mx.array, w: NormWeight) -> mx.array:
    """The norm that `w` describes: (..., D) -> (..., D)."""
    match w:
        case None:
            return x
        case LayerNormWeight(weight, bias, eps):
            return layer_norm(x, weight, bias, eps)
        case RMSNormWeight(weight, eps, shift):
            if weight is None or not shift:
                return rms_norm(x, weight, eps)
            # In float32: in bfloat16, 1 + weight would round a weight near zero away.
            return rms_norm(x.astype(mx.float32), shift + weight.astype(mx.float32), eps).astype(x.dtype)


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """x / sqrt(mean(x^2) + eps) * weight: (..., D), (D,) -> (..., D). arXiv:1910.07467, eq. 4."""
    if choice() == "reference":
        return rms_norm_reference(x, weight, eps)
    kernels = native(x, weight) if weight is not None else None
    if kernels is not None:
        return kernels.rms_norm(x, weight, eps)
    return mx.fast.rms_norm(x, weight, eps)


def rms_norm_reference(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """The same from its definition."""
    wide = x.astype(mx.float32)
    y = wide * mx.rsqrt(mx.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (y if weight is None else y * weight).astype(x.dtype)


def layer_norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float) -> mx.array:
    """(x - mean) / sqrt(var + eps) * weight + bias: (..., D) -> (..., D). arXiv:1607.06450, eq. 4."""
    if choice() == "reference":
        return layer_norm_reference(x, weight, bias, eps)
    kernels = native(x, weight, bias) if weight is not None else None
    if kernels is not None:
        return kernels.layer_norm(x, weight, bias, eps)
    return mx.fast.layer_norm(x, weight, bias, eps)


def layer_norm_reference(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float) -> mx.array:
    """The same from its definition."""
    wide = x.astype(mx.float32)
    centred = wide - mx.mean(wide, axis=-1, keepdims=True)
    y = centred * mx.rsqrt(mx.mean(centred * centred, axis=-1, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).astype(x.dtype)


def norm(arrays: Sequence[mx.array]) -> mx.array:
    """The Euclidean norm of all arrays together, in float32: ()."""
    kernels = native(*arrays)
    if kernels is not None:
        return kernels.norm(arrays)
    return mx.sqrt(mx.stack([_sum(mx.square(a.astype(mx.float32))) for a in arrays]).sum())


def _sum(x: mx.array) -> mx.array:
    """The sum, axis by axis.

    MLX's CPU adds one number after the other, which errs by percents over a million.
    """
    while x.ndim:
        x = x.sum(axis=-1)
    return x

"""Linear layers over typed weights, with an optional norm and residual; embedding rows."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from . import cpu, fused_linear
from .cpu import blas
from .dispatch import native
from .fallback import kernel_or
from .gate import gated
from .norm import normalize
from .quantized import quantized_matmul
from .weights import AdaptedWeight, DenseWeight, NormWeight, PackedWeight, Weight

HALVES = (mx.bfloat16, mx.float16)


def linear(x: mx.array, w: Weight, *, norm: NormWeight = None, residual: mx.array | None = None) -> mx.array:
    """residual + norm(x) W^T + b: (..., D) -> (..., F). Fused if a kernel supports the combination."""
    if fused_linear.supports(x):
        return kernel_or(fused_linear.linear, _linear, x, w, norm, residual)
    return _linear(x, w, norm, residual)


def linears(x: mx.array, weights: Sequence[Weight], *, norm: NormWeight = None) -> list[mx.array]:
    """norm(x) W^T + b for each weight: (..., D) -> (..., F) each. Fused if a kernel supports all."""
    if fused_linear.supports(x):
        return kernel_or(fused_linear.linears, _one_by_one, x, list(weights), norm)
    normed = normalize(x, norm)
    return [_linear(normed, w) for w in weights]


def gated_linear(x: mx.array, gate: Weight, up: Weight, activation: str, *, norm: NormWeight = None) -> mx.array:
    """act(x' G^T) * x' U^T with x' = norm(x): (..., D) -> (..., F). Fused if a kernel supports it."""
    if fused_linear.supports(x):
        return kernel_or(fused_linear.gated_linear, _gated, x, gate, up, activation, norm)
    return _gated(x, gate, up, activation, norm)


def _one_by_one(x: mx.array, weights: Sequence[Weight], norm: NormWeight) -> list[mx.array]:
    return [linear(x, w, norm=norm) for w in weights]


def _gated(x: mx.array, gate: Weight, up: Weight, activation: str, norm: NormWeight) -> mx.array:
    g, u = linears(x, (gate, up), norm=norm)  # (..., F) each
    return gated(g, u, activation)


def _linear(x: mx.array, w: Weight, norm: NormWeight = None, residual: mx.array | None = None) -> mx.array:
    x = normalize(x, norm)
    match w:
        case DenseWeight(weight, bias):
            y = dense_linear(x, weight, bias)
        case PackedWeight(bias=bias):
            y = quantized_matmul(x, w)
            y = y if bias is None else y + bias
        case AdaptedWeight(base, gain=None):
            y = adapted(_linear(x, base), x, w)
        case AdaptedWeight():
            y = magnified(x, w)
    return y if residual is None else residual + y


def adapted(y: mx.array, x: mx.array, w: AdaptedWeight) -> mx.array:
    """y + scale * dropout(x) A B: (..., F), (..., D) -> (..., F), in float32 as in PEFT."""
    a, b = w.a.astype(mx.float32), w.b.astype(mx.float32)
    return mx.addmm(y, dropped_out(x, w.dropout) @ a, b, alpha=w.scale).astype(y.dtype)


def magnified(x: mx.array, w: AdaptedWeight) -> mx.array:
    """b + gain * (x' W^T + scale * x' A B) with x' = dropout(x): (..., D) -> (..., F).

    Dropout spares W^T times 1 in place of the gain, as in PEFT.
    """
    assert w.gain is not None
    plain = w.base._replace(bias=None)
    dropped = dropped_out(x, w.dropout)
    y = _linear(dropped, plain)
    out = (w.gain * adapted(y, dropped, w._replace(dropout=0.0))).astype(y.dtype)
    if w.dropout:
        out = out + _linear(x, plain) - y
    return out if w.base.bias is None else out + w.base.bias


def dropped_out(x: mx.array, rate: float) -> mx.array:
    """x with a share `rate` of its values 0 and the others scaled up."""
    return mx.random.bernoulli(1 - rate, x.shape) * x * (1 / (1 - rate)) if rate else x


def dense_linear(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """x W^T + b: (..., D), (F, D), (F,) -> (..., F). Float32 activations stay float32."""
    half = x.dtype == mx.float32 and weight.dtype in HALVES
    kernels = native(x, bias) if half or weight.dtype == mx.float32 else None
    if kernels is not None and blas.has_serial_sgemm():
        return kernels.linear(x, weight, bias)
    weight = weight.astype(mx.float32) if half else weight
    return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


def rows(table: mx.array, tokens: mx.array) -> mx.array:
    """Rows of a table (V, D): int (...) -> (..., D); float32 on a CPU, which only emulates 16 bits."""
    found = table[tokens]
    return found.astype(mx.float32) if mx.default_device() == mx.cpu else found


def supports_half_weights() -> bool:
    """True if a kernel here multiplies float32 by 16-bit matrices without converting them."""
    return mx.default_device() == mx.cpu and cpu.available() and blas.has_serial_sgemm()

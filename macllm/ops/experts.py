"""Mixture of experts: routing, and products with the chosen experts' weights."""

from __future__ import annotations

from typing import Literal

import mlx.core as mx

from . import fused_linear
from .cpu import blas
from .dispatch import native
from .fallback import kernel_or
from .gate import gated
from .linear import HALVES, dropped_out
from .quantized import quantized_gather_matmul
from .weights import AdaptedWeight, DenseWeight, ExpertWeights, PackedWeight, Weight


def route(
    logits: mx.array, top_k: int, scores: Literal["softmax", "sigmoid"], *, renormalize: bool
) -> tuple[mx.array, mx.array]:
    """The `top_k` experts of each token and their weights: (..., E) -> int (..., T), float32 (..., T).

    Softmax scores are taken over all experts (arXiv:2401.04088, 2.1); `renormalize` makes the chosen sum to 1.
    """
    logits = logits.astype(mx.float32)
    chosen = mx.stop_gradient(mx.argpartition(logits, kth=-top_k, axis=-1)[..., -top_k:])
    picked = mx.take_along_axis(logits, chosen, axis=-1)
    if scores == "sigmoid":
        weights = mx.sigmoid(picked)
        return chosen, weights / weights.sum(axis=-1, keepdims=True) if renormalize else weights
    if renormalize:  # the sum over all experts would cancel
        return chosen, mx.softmax(picked, axis=-1)
    return chosen, mx.exp(picked - mx.logsumexp(logits, axis=-1, keepdims=True))


def experts(
    x: mx.array, e: ExpertWeights, chosen: mx.array, weights: mx.array, residual: mx.array | None = None
) -> mx.array:
    """residual + sum_t weights_t E_t(x): (..., D), chosen and weights (..., T) -> (..., D)."""
    if fused_linear.supports(x):
        return kernel_or(fused_linear.experts, _experts, x, e, chosen, weights, residual)
    return _experts(x, e, chosen, weights, residual)


def _experts(x: mx.array, e: ExpertWeights, chosen: mx.array, weights: mx.array, residual: mx.array | None) -> mx.array:
    y = expert_outputs(x[..., None, None, :], e, chosen)  # (..., T, D)
    y = (y * weights.astype(x.dtype)[..., None]).sum(-2)
    return y if residual is None else residual + y


def expert_outputs(x: mx.array, e: ExpertWeights, chosen: mx.array) -> mx.array:
    """(act(x G_e^T) * x U_e^T) D_e^T per expert: (..., 1 or T, 1, D), int (..., T) -> (..., T, D)."""
    h = gated(gather_linear(x, e.gate, chosen), gather_linear(x, e.up, chosen), e.activation)  # (..., T, 1, F)
    return gather_linear(h, e.down, chosen).squeeze(-2)


def gather_linear(x: mx.array, w: Weight, chosen: mx.array) -> mx.array:
    """x W_e^T for each chosen expert e: (..., 1 or T, 1, D), int (..., T) -> (..., T, 1, F)."""
    match w:
        case DenseWeight(weight):
            return gather_matmul(x, weight, chosen)
        case PackedWeight():
            return quantized_gather_matmul(x, w, chosen)
        case AdaptedWeight(base, a, b, scale):
            y = gather_linear(x, base, chosen)
            x, a, b = (array.astype(mx.float32) for array in (dropped_out(x, w.dropout), a, b))  # as `adapted`
            z = mx.gather_mm(x, a, rhs_indices=chosen)
            return y + (scale * mx.gather_mm(z, b, rhs_indices=chosen)).astype(y.dtype)


def gather_matmul(x: mx.array, weight: mx.array, chosen: mx.array) -> mx.array:
    """x W_e^T for each chosen expert e: (..., 1 or T, 1, D), (E, F, D), int (..., T) -> (..., T, 1, F).

    Float32 activations stay float32 with 16-bit weights.
    """
    half = x.dtype == mx.float32 and weight.dtype in HALVES
    kernels = native() if half and x.shape[-2] == 1 else None
    if kernels is not None and blas.has_serial_sgemm():
        rows = mx.broadcast_to(x.squeeze(-2), (*chosen.shape, x.shape[-1]))
        return kernels.linear_gather(rows, weight, chosen)[..., None, :]
    weight = weight.astype(mx.float32) if half else weight
    return mx.gather_mm(x, weight.swapaxes(-1, -2), rhs_indices=chosen)

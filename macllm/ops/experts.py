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

# Of MLX's products with the matrices of experts, the gradients sum outer products one by one, and those of sorted rows
# are products of an expert's rows: five times as fast for 1,800 rows on a CPU.
_FEWEST_SORTED = 64  # choices in all


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
    if chosen.size < _FEWEST_SORTED or not all(_gains_by_order(w, x.dtype) for w in (e.gate, e.up, e.down)):
        return _outputs(x, e, chosen, is_sorted=False)
    top_k, count = chosen.shape[-1], x.shape[-3]
    order = mx.argsort(chosen.reshape(-1))  # (N T,)
    rows = x.reshape(-1, *x.shape[-2:])[order if count == top_k else order // top_k]  # (N T, 1, D)
    y = _outputs(rows, e, chosen.reshape(-1)[order], is_sorted=True)  # (N T, D)
    return y[mx.argsort(order)].reshape(*chosen.shape, y.shape[-1])


def _gains_by_order(w: Weight, dtype: mx.Dtype) -> bool:
    """True for weights with MLX's own products, which are faster on rows sorted by expert.

    Dropout is left out: the experts of a token share what it drops.
    """
    if isinstance(w, AdaptedWeight) and w.dropout:
        return False
    base = w.base if isinstance(w, AdaptedWeight) else w
    return isinstance(base, DenseWeight) and base.weight.dtype == dtype


def _outputs(x: mx.array, e: ExpertWeights, chosen: mx.array, *, is_sorted: bool) -> mx.array:
    gate, up = (gather_linear(x, w, chosen, is_sorted=is_sorted) for w in (e.gate, e.up))  # (..., T, 1, F) each
    return gather_linear(gated(gate, up, e.activation), e.down, chosen, is_sorted=is_sorted).squeeze(-2)


def gather_linear(x: mx.array, w: Weight, chosen: mx.array, *, is_sorted: bool = False) -> mx.array:
    """x W_e^T for each chosen expert e: (..., 1 or T, 1, D), int (..., T) -> (..., T, 1, F).

    `is_sorted` says that the experts of `chosen` ascend.
    """
    match w:
        case DenseWeight(weight):
            return gather_matmul(x, weight, chosen, is_sorted=is_sorted)
        case PackedWeight():
            return quantized_gather_matmul(x, w, chosen)
        case AdaptedWeight(base, a, b, scale):
            y = gather_linear(x, base, chosen, is_sorted=is_sorted)
            x, a, b = (array.astype(mx.float32) for array in (dropped_out(x, w.dropout), a, b))  # as `adapted`
            z = mx.gather_mm(x, a, rhs_indices=chosen, sorted_indices=is_sorted)
            added = mx.gather_mm(z, b, rhs_indices=chosen, sorted_indices=is_sorted)
            return y + (scale * added).astype(y.dtype)


def gather_matmul(x: mx.array, weight: mx.array, chosen: mx.array, *, is_sorted: bool = False) -> mx.array:
    """x W_e^T for each chosen expert e: (..., 1 or T, 1, D), (E, F, D), int (..., T) -> (..., T, 1, F).

    Float32 activations stay float32 with 16-bit weights.
    """
    half = x.dtype == mx.float32 and weight.dtype in HALVES
    kernels = native() if half and x.shape[-2] == 1 else None
    if kernels is not None and blas.has_serial_sgemm():
        rows = mx.broadcast_to(x.squeeze(-2), (*chosen.shape, x.shape[-1]))
        return kernels.linear_gather(rows, weight, chosen)[..., None, :]
    weight = weight.astype(mx.float32) if half else weight
    return mx.gather_mm(x, weight.swapaxes(-1, -2), rhs_indices=chosen, sorted_indices=is_sorted)

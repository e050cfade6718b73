"""The loss of a language model, and sums of exponentials over its vocabulary."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .dispatch import native


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """-log softmax(logits)[target], in nats and float32: (..., V), int (...) -> (...)."""
    wide = logits.astype(mx.float32)
    kernels = native(wide)
    if kernels is not None:
        return kernels.cross_entropy(wide, targets)[0]
    picked = mx.take_along_axis(wide, targets[..., None], axis=-1).squeeze(-1)
    return mx.logsumexp(wide, axis=-1) - picked


def log_sum_exp(logits: mx.array) -> mx.array:
    """log of the sum of exp(logits), in float32: (..., V) -> (..., 1)."""
    wide = logits.astype(mx.float32)
    kernels = native(wide)
    if kernels is None:
        return mx.logsumexp(wide, axis=-1, keepdims=True)
    return kernels.cross_entropy(wide, mx.zeros(wide.shape[:-1], dtype=mx.int32))[1][..., None]


def probabilities(log_p: mx.array) -> mx.array:
    """exp of normalized log-probabilities, in float32, by a kernel that divides by their sum: (..., V)."""
    if native(log_p) is None:
        return mx.exp(log_p)

    def run(log_p: mx.array) -> mx.array:
        return mx.vjp(log_sum_exp, [log_p], [mx.ones((*log_p.shape[:-1], 1))])[1][0]

    def gradient(primals: Any, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent * output

    function: Any = mx.custom_function(run)
    function.vjp(gradient)
    return function(log_p)

"""Clipping of gradients by their global norm."""

from __future__ import annotations

import mlx.core as mx

from macllm.ops.norm import norm

from ..contract import Arrays


def global_norm(gradients: Arrays) -> mx.array:
    """The Euclidean norm of all gradients together, in float32."""
    return norm(list(gradients.values()))


def clip_factor(gradient_norm: mx.array, most: float) -> mx.array:
    """Factor that scales gradients of this norm down to norm `most`; 1 for `most` = 0."""
    return mx.minimum(1.0, most / (gradient_norm + 1e-6)) if most > 0 else mx.array(1.0)

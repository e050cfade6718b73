"""One step of AdamW on one tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from .dispatch import native
from .fusion import fused

Updated = tuple[mx.array, mx.array, mx.array]


class Scalars(NamedTuple):
    """Scale factors of a step, each a float32 scalar."""

    gradient: mx.array  # the gradient's factor: clipping, and the mean over tokens
    rate: mx.array  # the learning rate over the first moment's bias correction
    root: mx.array  # the second moment's bias correction, under the root
    decay: mx.array  # the weight's factor: 1 - learning rate * weight decay


def adamw(
    weight: mx.array,
    gradient: mx.array,
    moments: tuple[mx.array, mx.array],
    by: Scalars,
    betas: tuple[float, float],
    epsilon: float,
) -> Updated:
    """The updated weight and its two float32 moments (AdamW: arXiv:1711.05101, alg. 2)."""
    kernels = native(weight, gradient, *moments)
    if kernels is not None:
        return kernels.adamw(weight, gradient, *moments, list(by), *betas, epsilon)
    return _fused(*betas, epsilon)(weight, gradient, *moments, *by)


@cache
def _fused(beta1: float, beta2: float, epsilon: float) -> Callable[..., Updated]:
    """The fused update of one tensor: memory-bound, it reads each array only once."""

    def update(weight: mx.array, gradient: mx.array, mean: mx.array, square: mx.array, *by: Any) -> Updated:
        factor, rate, root, decay = by
        g = gradient.astype(mx.float32) * factor
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * (g * g)
        moved = weight.astype(mx.float32) * decay - rate * mean / (mx.sqrt(square) * root + epsilon)
        return moved.astype(weight.dtype), mean, square

    return fused(update)

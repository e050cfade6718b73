"""One step of Lion on one tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from .fusion import fused

Updated = tuple[mx.array, mx.array]


class LionScalars(NamedTuple):
    """Scale factors of a step, each a float32 scalar."""

    gradient: mx.array  # the gradient's factor: clipping, and the mean over tokens
    rate: mx.array
    decay: mx.array  # the weight's factor: 1 - learning rate * weight decay


def lion(weight: mx.array, gradient: mx.array, mean: mx.array, by: LionScalars, betas: tuple[float, float]) -> Updated:
    """The updated weight and its float32 mean gradient (Lion: arXiv:2302.06675, algorithm 2)."""
    return _fused(*betas)(weight, gradient, mean, *by)


@cache
def _fused(beta1: float, beta2: float) -> Callable[..., Updated]:
    def update(weight: mx.array, gradient: mx.array, mean: mx.array, *by: Any) -> Updated:
        factor, rate, decay = by
        g = gradient.astype(mx.float32) * factor
        direction = mx.sign(beta1 * mean + (1 - beta1) * g)
        moved = weight.astype(mx.float32) * decay - rate * direction
        return moved.astype(weight.dtype), beta2 * mean + (1 - beta2) * g

    return fused(update)

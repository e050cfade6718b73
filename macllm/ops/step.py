"""The residual branches of a decoding step, each in one op: one new token in each of a few rows.

Where there is no such op for the device, the dtype or the model, the result is None and the caller takes the ops that
these are made of. Nothing here has a gradient: arrays that are being differentiated are not served either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from .dispatch import native

ACTIVATIONS = {"silu": 2, "gelu_tanh": 3, "gelu": 4, "gelu_quick": 5}  # as the kernels number them
MOST_ROWS = 8

Weights = list[mx.array | None]  # weight and bias of each norm and linear map; None for what a model has not
Norm = tuple[float, float, float]  # 0 none, 1 RMS, 2 layer; epsilon; 1 where the scale is 1 + weight
NO_NORM: Norm = (0.0, 0.0, 0.0)


class Residual(NamedTuple):
    """The norms of sum(x + branch(f(pre(x)))), whose weights are the first of a step's."""

    pre: Norm
    branch: Norm
    sum: Norm


class AttentionNumbers(NamedTuple):
    """What an attention branch is, besides its weights: q, k, v, o and the four norms on queries and keys."""

    num_heads: int
    scale: float
    softcap: float  # 0: none
    heat_floor: float  # of a temperature that grows with the position; 0: none
    heat_scale: float
    interleaved: bool
    q_norm: Norm
    k_norm: Norm
    q_head_norm: Norm
    k_head_norm: Norm


class Slots(NamedTuple):
    """Dense keys and values (B, K, S, Dh) and what of them a step touches.

    The new token's rows go into slot `at`. A row sees the slots from `first` on and stands at `position`. The buffers
    are written where they lie unless they are `borrowed`: unless others hold them, or views of them.
    """

    keys: mx.array
    values: mx.array
    at: int
    first: Sequence[int]
    position: Sequence[int]
    borrowed: bool


def attention_numbers(residual: Residual, rest: AttentionNumbers) -> list[float]:
    """Both as the kernel reads them."""
    numbers: list[float] = [part for norm in residual for part in norm]
    for value in rest:
        numbers.extend(value if isinstance(value, tuple) else (float(value),))
    return numbers


def mlp_numbers(residual: Residual, activation: str) -> list[float] | None:
    """Both as the kernel reads them; None for an activation that it does not have."""
    if activation not in ACTIVATIONS:
        return None
    return [*(part for norm in residual for part in norm), float(ACTIVATIONS[activation])]


def attention_step(
    x: mx.array, slots: Slots, rotation: tuple[mx.array | None, float], weights: Weights, numbers: list[float]
) -> tuple[mx.array, mx.array, mx.array] | None:
    """The stream after attention, and the keys and values with the new token's: (B, 1, D) -> (B, 1, D).

    `rotation` is the wavelengths of RoPE and what rotated dims are scaled by.
    """
    kernels = native(x)
    if kernels is None:
        return None
    place = (list(slots.first), list(slots.position), slots.at)
    wavelengths, magnitude = rotation
    return kernels.attention_step(
        x, slots.keys, slots.values, wavelengths, weights, numbers, place, magnitude, slots.borrowed
    )


def mlp_step(x: mx.array, weights: Weights, numbers: list[float]) -> mx.array | None:
    """The stream after the feed-forward layer; weights are up, down, and gate where there is one."""
    kernels = native(x)
    return None if kernels is None else kernels.mlp_step(x, weights, numbers)

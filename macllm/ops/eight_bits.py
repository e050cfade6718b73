"""Arrays in 8 bits: blocks of values, each with a scale of its own, on a cubic grid.

The grid is finest around 0, so that small values of a block keep their sign and order of magnitude, too.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from .fusion import fused

BLOCK = 256  # values with a common scale
_TOP = 127


class EightBits(NamedTuple):
    """Codes, int8 and of the array's shape, and the largest absolute value of each block, float32."""

    codes: mx.array
    scales: mx.array


def packed(x: mx.array) -> EightBits:
    """`x` in 8 bits. The error of a value is at most 1.2% of the largest absolute value of its block."""
    codes, scales = _pack()(_blocks(x.astype(mx.float32)))
    return EightBits(codes.flatten()[: x.size].reshape(x.shape), scales.flatten())


def unpacked(x: EightBits) -> mx.array:
    """The array in float32."""
    values = _unpack()(_blocks(x.codes), x.scales[:, None])
    return values.flatten()[: x.codes.size].reshape(x.codes.shape)


def _blocks(x: mx.array) -> mx.array:
    flat = x.flatten()
    return mx.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)


@cache
def _pack() -> Any:
    def pack(x: mx.array) -> tuple[mx.array, mx.array]:
        sizes = mx.abs(x)
        scales = sizes.max(axis=1, keepdims=True)
        roots = mx.power(sizes / mx.maximum(scales, mx.finfo(mx.float32).smallest_normal), 1 / 3)
        return (mx.sign(x) * mx.round(_TOP * roots)).astype(mx.int8), scales

    return fused(pack)


@cache
def _unpack() -> Any:
    def unpack(codes: mx.array, scales: mx.array) -> mx.array:
        x = codes.astype(mx.float32) / _TOP
        return x * x * x * scales

    return fused(unpack)

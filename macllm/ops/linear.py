"""Linear maps and token tables, whose weights may be 16-bit floats beside float32 activations."""

from __future__ import annotations

import mlx.core as mx

from . import cpu
from .cpu import blas
from .dispatch import native

HALVES = (mx.bfloat16, mx.float16)


def linear(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """x W^T + b: (..., D), (F, D), (F,) -> (..., F). Weights of 16 bits leave float32 activations what they are."""
    half = x.dtype == mx.float32 and weight.dtype in HALVES
    kernels = native(x, bias) if half or weight.dtype == mx.float32 else None
    if kernels is not None and blas.divided():
        return kernels.linear(x, weight, bias)
    weight = weight.astype(mx.float32) if half else weight
    return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


def rows(table: mx.array, tokens: mx.array) -> mx.array:
    """Rows of a table (V, D) by token: int (...) -> (..., D), float32 on a CPU, which only emulates 16 bits."""
    found = table[tokens]
    return found.astype(mx.float32) if mx.default_device() == mx.cpu else found


def multiplies_halves() -> bool:
    """Whether a kernel here multiplies float32 by 16-bit matrices as they are."""
    return mx.default_device() == mx.cpu and cpu.available() and blas.divided()

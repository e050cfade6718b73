"""Matrix products with weights in few bits, as `mx.quantize` packs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Literal

import mlx.core as mx

from . import cpu
from .dispatch import choice, native
from .weights import PackedWeight

Activations = Literal["int8", "float"]

_activations: ContextVar[Activations] = ContextVar("activations", default="int8")


@contextmanager
def using_activations(form: Activations) -> Iterator[None]:
    """Allow ("int8") or forbid ("float") rounding a few tokens' activations to 8 bits in this block."""
    token = _activations.set(form)
    try:
        yield
    finally:
        _activations.reset(token)


def quantized_matmul(x: mx.array, w: PackedWeight) -> mx.array:
    """x W^T: (..., D) -> (..., F). Ignores the bias."""
    if choice() == "reference":
        return x @ w.dequantized().T
    kernels = _kernels(w) if _is_real(x) else None
    if kernels is None:
        return mx.quantized_matmul(
            x, w.words, w.scales, w.biases, transpose=True, group_size=w.group_size, bits=w.bits, mode=w.mode
        )
    y = kernels.quantized_matmul(
        x.astype(mx.float32), w.words, w.scales, w.biases, w.group_size, w.bits, uses_int8_activations()
    )
    return y.astype(mx.result_type(x, w.scales))


def quantized_rows(w: PackedWeight, tokens: mx.array) -> mx.array:
    """Rows of a table (V, D): int (...) -> (..., D); float32 on a CPU, which only emulates 16 bits."""
    kernels = _kernels(w)
    if kernels is not None:
        return kernels.quantized_rows(w.words, w.scales, w.biases, tokens, w.group_size, w.bits)
    weight, scales, biases = w.words[tokens], w.scales[tokens], None if w.biases is None else w.biases[tokens]
    if mx.default_device() == mx.cpu and biases is not None:
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return PackedWeight(weight, scales, biases, w.group_size, w.bits, w.mode).dequantized()


def supports_half_scales() -> bool:
    """True if a kernel here multiplies float32 by matrices with 16-bit scales."""
    return mx.default_device() == mx.cpu and cpu.available()


def quantized_gather_matmul(x: mx.array, w: PackedWeight, chosen: mx.array) -> mx.array:
    """x W_e^T for each chosen expert e: (..., 1 or T, 1, D), int (..., T) -> (..., T, 1, F)."""
    if choice() == "reference":
        return mx.gather_mm(x, w.dequantized().swapaxes(-1, -2), rhs_indices=chosen)
    kernels = _kernels(w) if x.shape[-2] == 1 and _is_real(x) else None
    if kernels is None:
        layout = {"transpose": True, "group_size": w.group_size, "bits": w.bits, "mode": w.mode}
        return mx.gather_qmm(x, w.words, w.scales, w.biases, rhs_indices=chosen, **layout)
    rows = mx.broadcast_to(x.astype(mx.float32).squeeze(-2), (*chosen.shape, x.shape[-1]))
    y = kernels.quantized_gather(
        rows, w.words, w.scales, w.biases, chosen, w.group_size, w.bits, uses_int8_activations()
    )
    return y[..., None, :].astype(mx.result_type(x, w.scales))


def uses_int8_activations() -> bool:
    """True if a kernel may round the activations of a few tokens to 8 bits."""
    return _activations.get() == "int8"


def _is_real(x: mx.array) -> bool:
    return mx.issubdtype(x.dtype, mx.floating) and x.dtype != mx.float64


def _kernels(w: PackedWeight) -> ModuleType | None:
    """The native kernels, or None if they do not support the matrix's packing."""
    if w.mode != "affine" or w.group_size is None or w.bits is None:
        return None
    return None if w.biases is None or w.scales.dtype != w.biases.dtype else native()

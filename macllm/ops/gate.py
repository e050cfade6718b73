"""Activations, alone and as gates (Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import mlx.core as mx

from .dispatch import native


def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


def _gelu_tanh(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _gelu_quick(x: mx.array) -> mx.array:
    return x * mx.sigmoid(1.702 * x)


def _relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


def _relu_squared(x: mx.array) -> mx.array:
    return mx.square(mx.maximum(x, 0))


ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "gelu_quick": _gelu_quick,
    "relu": _relu,
    "relu_squared": _relu_squared,
    "tanh": mx.tanh,
}


NATIVE = frozenset(("silu", "gelu", "gelu_tanh", "gelu_quick"))


def activate(x: mx.array, activation: str) -> mx.array:
    """The named activation, elementwise. GELU exact, by tanh, or quick: arXiv:1606.08415, 2."""
    kernels = native(x) if activation in NATIVE else None
    if kernels is not None:
        return kernels.unary(x, activation)
    return ACTIVATIONS[activation](x) if mx.default_device() == mx.cpu else _fused(activation)(x)


def gated(gate: mx.array, up: mx.array, activation: str) -> mx.array:
    """act(gate) * up, elementwise: SwiGLU with "silu", GeGLU with "gelu"."""
    kernels = native(gate, up) if activation in NATIVE else None
    if kernels is not None:
        return kernels.gate(gate, up, activation)
    if mx.default_device() == mx.cpu:
        return ACTIVATIONS[activation](gate) * up
    return _fused_gate(activation)(gate, up)


# Compiled for GPUs only: on a CPU, MLX would call a C++ compiler at the first use of each.
@cache
def _fused(activation: str) -> Callable[[mx.array], mx.array]:
    return mx.compile(ACTIVATIONS[activation], shapeless=True)


@cache
def _fused_gate(activation: str) -> Callable[[mx.array, mx.array], mx.array]:
    return mx.compile(lambda gate, up: ACTIVATIONS[activation](gate) * up, shapeless=True)

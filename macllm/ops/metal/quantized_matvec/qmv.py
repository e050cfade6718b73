"""Launcher of quantized matrix-vector products of few rows, with fused norm and epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx

from .. import DTYPES, LANES, Input, KernelCall, launch

MOST_ROWS = 8
BITS = (2, 4, 8)
ACTIVATIONS = {None: 0, "silu": 1, "gelu_tanh": 2}
_OUTPUTS, _SIMDGROUPS = 4, 2  # outputs per simdgroup, and simdgroups per threadgroup
_SHARED_ROWS = 4  # rows that share each read of the matrix


class Matrix(NamedTuple):
    """(N, K), or a stack (E, N, K), as mx.quantize packs it."""

    words: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group_size: int


class Norm(NamedTuple):
    """RMS norm before the product: weight (K,) to which `shift` is added."""

    weight: mx.array
    eps: float
    shift: float = 0.0


class Adapter(NamedTuple):
    """A LoRA adapter, alpha x A B: a (K, R), b (N, R), which may be views."""

    a: mx.array
    b: mx.array
    alpha: float


@dataclass(frozen=True)
class Epilogue:
    """Fused parts of x W^T: act(x' W^T) (x' U^T) + bias + alpha x' A B + residual, x' = norm(x).

    U has the form of W; bias (N,), residual (rows, N).
    """

    norm: Norm | None = None
    up: Matrix | None = None
    activation: str | None = None
    bias: mx.array | None = None
    residual: mx.array | None = None
    adapter: Adapter | None = None


def supports(x: mx.array, w: Matrix) -> bool:
    """True if a kernel supports x (rows, K)."""
    return x.shape[0] <= MOST_ROWS and w.bits in BITS and w.group_size >= 32 and x.dtype in DTYPES


def product(x: mx.array, w: Matrix, epilogue: Epilogue = Epilogue()) -> mx.array:
    """x W^T with its epilogue: (rows, K) -> (rows, N)."""
    x = mx.contiguous(x)
    if epilogue.residual is not None:
        epilogue = replace(epilogue, residual=mx.contiguous(epilogue.residual))
    low = None if epilogue.adapter is None else launch(down(x, epilogue.adapter, epilogue.norm))[0]
    return launch(fused(x, w, epilogue, low))[0]


def down(x: mx.array, adapter: Adapter, norm: Norm | None) -> KernelCall:
    """x A, (rows, R) float32: the first half of an adapter."""
    rank = adapter.a.shape[1]
    inputs: dict[str, Input] = {"x": x, "norm": x if norm is None else norm.weight, "a": adapter.a}
    return KernelCall(
        "lora_down",
        inputs | _numbers(norm),
        {"low": ((x.shape[0], rank), mx.float32)},
        (LANES, rank, x.shape[0]),
        (LANES, 1, 1),
        {"T": x.dtype, "RANK": rank, "NORMED": norm is not None},
    )


def fused(x: mx.array, w: Matrix, epilogue: Epilogue, low: mx.array | None = None) -> KernelCall:
    """The product with its epilogue; `low` is the result of `down` for the adapter."""
    (rows, _), count = x.shape, w.words.shape[0]
    shared = min(_SHARED_ROWS, rows)
    norm, adapter, second = epilogue.norm, epilogue.adapter, epilogue.up or w
    # Missing inputs are not read; x is a placeholder.
    inputs: dict[str, Input] = {
        "x": x,
        "norm": x if norm is None else norm.weight,
        "words": w.words,
        "scales": w.scales,
        "biases": w.biases,
        "up_words": second.words,
        "up_scales": second.scales,
        "up_biases": second.biases,
        "bias": x if epilogue.bias is None else epilogue.bias,
        "residual": x if epilogue.residual is None else epilogue.residual,
        "b": x if adapter is None else adapter.b,
        "low": x if low is None else low,
        "alpha": 0.0 if adapter is None else adapter.alpha,
    }
    return KernelCall(
        "qmv",
        inputs | _numbers(norm),
        {"out": ((rows, count), x.dtype)},
        (LANES, _whole(count), -(-rows // shared)),
        (LANES, _SIMDGROUPS, 1),
        {
            "T": x.dtype,
            "BITS": w.bits,
            "GROUP": w.group_size,
            "VALUES": 16 if shared <= 2 or w.bits == 2 else 8,
            "ROWS": _OUTPUTS,
            "M": shared,
            "NORMED": norm is not None,
            "GATED": epilogue.up is not None,
            "ACTIVATION": ACTIVATIONS[epilogue.activation],
            "BIASED": epilogue.bias is not None,
            "HAS_RESIDUAL": epilogue.residual is not None,
            "RANK": 0 if adapter is None else adapter.a.shape[1],
        },
    )


def three(
    x: mx.array, matrices: Sequence[Matrix], norm: Norm | None = None, biases: Sequence[mx.array] | None = None
) -> KernelCall:
    """norm(x) W^T + b of three matrices with equal packing: (rows, K) -> three of (rows, N)."""
    rows, w = x.shape[0], matrices[0]
    shared = min(_SHARED_ROWS, rows)
    inputs: dict[str, Input] = {"x": x, "norm": x if norm is None else norm.weight}
    for name, matrix, bias in zip("qkv", matrices, biases or (x, x, x), strict=True):
        inputs |= {f"{name}_words": matrix.words, f"{name}_scales": matrix.scales, f"{name}_biases": matrix.biases}
        inputs[f"{name}_bias"] = bias
    return KernelCall(
        "qmv_three",
        inputs | _numbers(norm),
        {f"{n}_out": ((rows, m.words.shape[0]), x.dtype) for n, m in zip("qkv", matrices, strict=True)},
        (LANES, sum(_whole(m.words.shape[0]) for m in matrices), -(-rows // shared)),
        (LANES, _SIMDGROUPS, 1),
        {
            "BITS": w.bits,
            "GROUP": w.group_size,
            "VALUES": 16 if shared <= 2 or w.bits == 2 else 8,
            "ROWS": _OUTPUTS,
            "M": shared,
            "NORMED": norm is not None,
            "BIASED": biases is not None,
        },
    )


def gate_up(x: mx.array, gate: Matrix, up: Matrix, chosen: mx.array, activation: str) -> KernelCall:
    """(tokens, K), chosen (tokens, T) -> (tokens, T, N): act(x G_e^T) (x U_e^T)."""
    tokens, top = chosen.shape
    count = gate.words.shape[1]
    inputs: dict[str, Input] = {"x": mx.contiguous(x), "chosen": chosen}
    for name, matrix in (("gate", gate), ("up", up)):
        inputs |= {f"{name}_words": matrix.words, f"{name}_scales": matrix.scales, f"{name}_biases": matrix.biases}
    return KernelCall(
        "moe_gate_up",
        inputs,
        {"out": ((tokens, top, count), x.dtype)},
        (LANES, _whole(count), tokens * top),
        (LANES, _SIMDGROUPS, 1),
        _packing(x, gate) | {"TOP": top, "ACTIVATION": ACTIVATIONS[activation]},
    )


def down_combine(
    h: mx.array, w: Matrix, chosen: mx.array, weights: mx.array, residual: mx.array | None = None
) -> KernelCall:
    """(tokens, T, K), chosen and weights (tokens, T) -> (tokens, N): the experts' weighted sum."""
    tokens, top = chosen.shape
    count = w.words.shape[1]
    inputs: dict[str, Input] = {"h": h, "chosen": chosen, "weights": weights}
    inputs |= {"words": w.words, "scales": w.scales, "biases": w.biases}
    inputs["residual"] = h if residual is None else mx.contiguous(residual)
    return KernelCall(
        "moe_down_combine",
        inputs,
        {"out": ((tokens, count), h.dtype)},
        (LANES, _whole(count), tokens),
        (LANES, _SIMDGROUPS, 1),
        _packing(h, w) | {"TOP": top, "HAS_RESIDUAL": residual is not None},
    )


def _packing(x: mx.array, w: Matrix) -> dict[str, int | bool | mx.Dtype]:
    return {"T": x.dtype, "BITS": w.bits, "GROUP": w.group_size, "VALUES": 16, "ROWS": _OUTPUTS}


def _whole(count: int) -> int:
    """Simdgroups for `count` outputs, in whole threadgroups."""
    return -(-count // (_OUTPUTS * _SIMDGROUPS)) * _SIMDGROUPS


def _numbers(norm: Norm | None) -> dict[str, Input]:
    return {"eps": 0.0 if norm is None else norm.eps, "shift": 0.0 if norm is None else norm.shift}

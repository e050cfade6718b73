"""How qkv_post, its packed form and its gradient are dispatched."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import TYPE_CHECKING

import mlx.core as mx

from .. import DTYPES, LANES, Call, Input

if TYPE_CHECKING:
    from macllm.ops.qkv_post import Rules

MOST_DIMS = 256
ROWS = 16
"""Tokens whose gradients of the norms' weights a simdgroup adds up."""
_GROUPED = 8  # simdgroups of a threadgroup, at most


def serves(q: mx.array, k: mx.array, rules: Rules) -> bool:
    """Whether there is a kernel for these."""
    return q.dtype == k.dtype and q.dtype in DTYPES and rules.head_dim <= MOST_DIMS


def forward(q: mx.array, k: mx.array, v: mx.array, rules: Rules, offset: mx.array) -> Call:
    """q (B, H, L, D), k and v (B, K, L, D)."""
    shapes = _shapes(q, k, rules)
    outputs = {f"{name}_out": (shape, q.dtype) for name, shape in shapes.items()}
    return _call("qkv_post", {"q": q, "k": k, "v": v}, outputs, rules, offset, {})


def packed(q: mx.array, k: mx.array, v: mx.array, rules: Rules, offset: mx.array, bits: int, group_size: int) -> Call:
    """q, then of keys and of values words, scales and biases."""
    heads, shapes = _heads(q, k, rules), _shapes(q, k, rules)
    width = -(-rules.head_dim // group_size) * group_size
    rows = shapes["k"][:3]
    outputs: dict[str, tuple[tuple[int, ...], mx.Dtype]] = {"q_out": (shapes["q"], q.dtype)}
    for name in ("k", "v"):
        outputs[f"{name}_words"] = (*rows, width * bits // 32), mx.uint32
        outputs[f"{name}_scales"] = outputs[f"{name}_biases"] = (*rows, width // group_size), q.dtype
    packing = {"BITS": bits, "GROUP": group_size, "W": width, "HEADS": _grouped(heads)}
    return _call("qkv_post_packed", {"q": q, "k": k, "v": v}, outputs, rules, offset, packing)


def backward(arrays: Mapping[str, mx.array], rules: Rules, offset: mx.array) -> Call:
    """Gradients of q, k and v, and parts of the norms' weights'; `arrays` are q, k, dq, dk and dv."""
    q, k = arrays["q"], arrays["k"]
    heads = _heads(q, k, rules)
    chunks = -(-q.shape[0] * q.shape[1] // ROWS)
    outputs: dict[str, tuple[tuple[int, ...], mx.Dtype]] = {
        "q_out": (q.shape, q.dtype),
        "k_out": (k.shape, q.dtype),
        "v_out": (k.shape, q.dtype),
        "parts": ((chunks, sum(heads), rules.head_dim), mx.float32),
    }
    return _call("qkv_post_vjp", arrays, outputs, rules, offset, {"ROWS": ROWS})


def _heads(q: mx.array, k: mx.array, rules: Rules) -> tuple[int, int]:
    return q.shape[2] // rules.head_dim, k.shape[2] // rules.head_dim


def _shapes(q: mx.array, k: mx.array, rules: Rules) -> dict[str, tuple[int, ...]]:
    (batch, length, _), dim = q.shape, rules.head_dim
    query, key = _heads(q, k, rules)
    return {"q": (batch, query, length, dim), "k": (batch, key, length, dim), "v": (batch, key, length, dim)}


def _grouped(heads: tuple[int, int]) -> int:
    """Simdgroups of a threadgroup: as many as divide the heads evenly."""
    return gcd(heads[0] + 2 * heads[1], _GROUPED)


def _call(
    kernel: str,
    arrays: Mapping[str, mx.array],
    outputs: Mapping[str, tuple[tuple[int, ...], mx.Dtype]],
    rules: Rules,
    offset: mx.array,
    template: Mapping[str, int],
) -> Call:
    q = arrays["q"]
    heads, tokens = _heads(q, arrays["k"], rules), q.shape[0] * q.shape[1]
    inputs: dict[str, Input] = {name: mx.contiguous(array) for name, array in arrays.items()}
    # What is not there is not read either: anything stands for it.
    inputs["q_norm"] = q if rules.q_norm is None else rules.q_norm
    inputs["k_norm"] = q if rules.k_norm is None else rules.k_norm
    inputs["wavelengths"] = q if rules.wavelengths is None else rules.wavelengths
    inputs |= {"offset": offset, "eps": rules.eps, "shift": rules.shift, "magnitude": rules.magnitude}
    return Call(
        kernel,
        inputs,
        outputs,
        (LANES, heads[0] + 2 * heads[1], -(-tokens // template.get("ROWS", 1))),
        (LANES, _grouped(heads), 1),
        {
            "T": q.dtype,
            "D": rules.head_dim,
            "PAIRS": 0 if rules.wavelengths is None else rules.wavelengths.size,
            "INTERLEAVED": rules.interleaved,
            "H": heads[0],
            "K": heads[1],
            "Q_NORM": rules.q_norm is not None,
            "K_NORM": rules.k_norm is not None,
            "OFFSETS": int(offset.size > 1),
            **template,
        },
    )

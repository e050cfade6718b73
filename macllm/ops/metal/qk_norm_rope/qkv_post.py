"""Launcher of qkv_post, its packed form and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

import mlx.core as mx

from ...head_params import HeadParams, Packing
from ...weights import NormWeight, RMSNormWeight
from .. import DTYPES, LANES, Input, KernelCall

MOST_DIMS = 256
ROWS = 16
"""Tokens whose gradients of the norms' weights a simdgroup sums."""
_GROUPED = 8  # simdgroups per threadgroup, at most


def supports(q: mx.array, k: mx.array, heads: HeadParams) -> bool:
    """True if a kernel supports these heads: they rotate, or both have an RMS norm with a weight."""
    if q.dtype != k.dtype or q.dtype not in DTYPES or heads.head_dim > MOST_DIMS:
        return False
    if heads.q_norm is None and heads.k_norm is None:
        return heads.wavelengths is not None
    norms = [norm for norm in (heads.q_norm, heads.k_norm) if isinstance(norm, RMSNormWeight)]
    return len(norms) == 2 and norms[0][1:] == norms[1][1:] and all(norm.weight is not None for norm in norms)


def forward(q: mx.array, k: mx.array, v: mx.array, params: HeadParams, offset: mx.array) -> KernelCall:
    """q (B, H, L, D), k and v (B, K, L, D)."""
    shapes = _shapes(q, k, params)
    outputs = {f"{name}_out": (shape, q.dtype) for name, shape in shapes.items()}
    return _call("qkv_post", {"q": q, "k": k, "v": v}, outputs, params, offset, {})


def packed(q: mx.array, k: mx.array, v: mx.array, params: HeadParams, offset: mx.array, packing: Packing) -> KernelCall:
    """q, then words, scales and biases of keys and of values."""
    (bits, group_size), heads, shapes = packing, _heads(q, k, params), _shapes(q, k, params)
    width = -(-params.head_dim // group_size) * group_size
    rows = shapes["k"][:3]
    outputs: dict[str, tuple[tuple[int, ...], mx.Dtype]] = {"q_out": (shapes["q"], q.dtype)}
    for name in ("k", "v"):
        outputs[f"{name}_words"] = (*rows, width * bits // 32), mx.uint32
        outputs[f"{name}_scales"] = outputs[f"{name}_biases"] = (*rows, width // group_size), q.dtype
    template = {"BITS": bits, "GROUP": group_size, "W": width, "HEADS": _grouped(heads)}
    return _call("qkv_post_packed", {"q": q, "k": k, "v": v}, outputs, params, offset, template)


def backward(arrays: Mapping[str, mx.array], params: HeadParams, offset: mx.array) -> KernelCall:
    """Gradients of q, k and v, and parts of the norms' weights'; `arrays` are q, k, dq, dk and dv."""
    q, k = arrays["q"], arrays["k"]
    heads = _heads(q, k, params)
    chunks = -(-q.shape[0] * q.shape[1] // ROWS)
    outputs: dict[str, tuple[tuple[int, ...], mx.Dtype]] = {
        "q_out": (q.shape, q.dtype),
        "k_out": (k.shape, q.dtype),
        "v_out": (k.shape, q.dtype),
        "parts": ((chunks, sum(heads), params.head_dim), mx.float32),
    }
    return _call("qkv_post_vjp", arrays, outputs, params, offset, {"ROWS": ROWS})


def _weight(norm: NormWeight) -> mx.array | None:
    return norm.weight if isinstance(norm, RMSNormWeight) else None


def _heads(q: mx.array, k: mx.array, params: HeadParams) -> tuple[int, int]:
    return q.shape[2] // params.head_dim, k.shape[2] // params.head_dim


def _shapes(q: mx.array, k: mx.array, params: HeadParams) -> dict[str, tuple[int, ...]]:
    (batch, length, _), dim = q.shape, params.head_dim
    query, key = _heads(q, k, params)
    return {"q": (batch, query, length, dim), "k": (batch, key, length, dim), "v": (batch, key, length, dim)}


def _grouped(heads: tuple[int, int]) -> int:
    """Simdgroups per threadgroup, which divide the heads evenly."""
    return gcd(heads[0] + 2 * heads[1], _GROUPED)


def _call(
    kernel: str,
    arrays: Mapping[str, mx.array],
    outputs: Mapping[str, tuple[tuple[int, ...], mx.Dtype]],
    params: HeadParams,
    offset: mx.array,
    template: Mapping[str, int],
) -> KernelCall:
    q = arrays["q"]
    heads, tokens = _heads(q, arrays["k"], params), q.shape[0] * q.shape[1]
    inputs: dict[str, Input] = {name: mx.contiguous(array) for name, array in arrays.items()}
    # Missing inputs are not read; q is a placeholder.
    norm = params.q_norm or params.k_norm or RMSNormWeight(None, 0.0)
    assert isinstance(norm, RMSNormWeight)
    q_norm, k_norm = _weight(params.q_norm), _weight(params.k_norm)
    inputs["q_norm"] = q if q_norm is None else q_norm
    inputs["k_norm"] = q if k_norm is None else k_norm
    inputs["wavelengths"] = q if params.wavelengths is None else params.wavelengths
    inputs |= {"offset": offset, "eps": norm.eps, "shift": norm.shift, "magnitude": params.magnitude}
    return KernelCall(
        kernel,
        inputs,
        outputs,
        (LANES, heads[0] + 2 * heads[1], -(-tokens // template.get("ROWS", 1))),
        (LANES, _grouped(heads), 1),
        {
            "T": q.dtype,
            "D": params.head_dim,
            "PAIRS": 0 if params.wavelengths is None else params.wavelengths.size,
            "INTERLEAVED": params.interleaved,
            "H": heads[0],
            "K": heads[1],
            "Q_NORM": q_norm is not None,
            "K_NORM": k_norm is not None,
            "OFFSETS": int(offset.size > 1),
            **template,
        },
    )

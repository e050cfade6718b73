"""Launcher of flash attention (many queries) and its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

import mlx.core as mx

from .. import LANES, Input, KernelCall, launch
from . import kv_decode

MOST_DIMS = 256
_EIGHT = 8  # rows and columns of a matrix
_MOST_BYTES = 32768  # of threadgroup memory


@dataclass(frozen=True)
class FlashParams(kv_decode.DecodeParams):
    """Softmax and mask parameters. A window is two-sided if not causal; 0 means no window or chunk.

    A query sees the keys of its own chunk; chunks begin at `first`, which is negative if a cache has dropped the first
    keys. `segments` (B, S) int32 are ascending along a row; queries are the last of the keys, and see their segment.
    """

    chunk: int = 0
    segments: mx.array | None = None


def supports(q: mx.array) -> bool:
    """True if a kernel supports these queries (B, H, L, D)."""
    return q.shape[3] <= MOST_DIMS and q.shape[3] % _EIGHT == 0


def run(
    q: mx.array, parts: Mapping[str, mx.array], params: FlashParams, *, key_bits: int = 0, value_bits: int = 0
) -> list[mx.array]:
    """(B, H, L, D) over `parts`, dense or packed keys and values -> (B, H, L, D), logsumexp (B, H, L)."""
    return launch(forward(q, parts, params, key_bits=key_bits, value_bits=value_bits))


def run_vjp(arrays: Mapping[str, mx.array], params: FlashParams) -> list[mx.array]:
    """Gradients of q, keys and values. `arrays`: those three, `out` and `lse` from `run`, and `dout`."""
    given = {**arrays, "dout": mx.contiguous(arrays["dout"])}
    (given["delta"],) = launch(delta(given.pop("out"), given["dout"]))
    return [*launch(gradient_q(given, params)), *launch(gradient_kv(given, params))]


def forward(
    q: mx.array, parts: Mapping[str, mx.array], params: FlashParams, *, key_bits: int = 0, value_bits: int = 0
) -> KernelCall:
    """Attention, and each row's logsumexp: parts are (B, K, S, ...)."""
    batch, heads, length, _ = q.shape
    form = _form(q, tiles=1, sums=1)
    template = _template(q, params, form) | {"HAS_SINKS": params.sinks is not None}
    if key_bits:
        width = parts["k_words"].shape[3] * 32 // key_bits
        template |= {"K_BITS": key_bits, "V_BITS": value_bits}
        template["GROUP"] = width // parts["k_scales"].shape[3]
    sinks = q if params.sinks is None else params.sinks
    return KernelCall(
        "flash_prefill_packed" if key_bits else "flash_prefill",
        {"q": q, **parts, **_scalars(params), "sinks": sinks},
        {"out": (q.shape, q.dtype), "lse": ((batch, heads, length), mx.float32)},
        *_grid(form, length, heads, batch),
        template,
    )


def delta(out: mx.array, dout: mx.array) -> KernelCall:
    """(B, H, L) of (B, H, L, D), both contiguous."""
    rows = out.size // out.shape[3]
    return KernelCall(
        "flash_backward_delta",
        {"out": out, "dout": dout},
        {"delta": (out.shape[:3], mx.float32)},
        (LANES, rows, 1),
        (LANES, gcd(rows, 8), 1),
        {"D": out.shape[3]},
    )


def gradient_q(arrays: Mapping[str, mx.array], params: FlashParams) -> KernelCall:
    """Gradient of q, from q, keys, values, lse, dout and delta."""
    q = arrays["q"]
    batch, heads, length, _ = q.shape
    form = _form(q, tiles=2, sums=1)
    return KernelCall(
        "flash_backward_q",
        {**arrays, **_scalars(params)},
        {"dq": (q.shape, q.dtype)},
        *_grid(form, length, heads, batch),
        _template(q, params, form),
    )


def gradient_kv(arrays: Mapping[str, mx.array], params: FlashParams) -> KernelCall:
    """Gradients of keys and values, from the same."""
    q, keys = arrays["q"], arrays["keys"]
    batch, kv_heads, count, _ = keys.shape
    form = _form(q, tiles=2, sums=2)
    return KernelCall(
        "flash_backward_kv",
        {**arrays, **_scalars(params)},
        {"dk": (keys.shape, q.dtype), "dv": (keys.shape, q.dtype)},
        *_grid(form, count, kv_heads, batch),
        _template(q, params, form),
    )


@dataclass(frozen=True)
class Form:
    """Threadgroup layout: blocks of eight rows, simdgroups per block, and rows of the other side per step."""

    blocks: int
    sides: int
    others: int


def _form(q: mx.array, *, tiles: int, sums: int) -> Form:
    """The largest threadgroup with memory for `tiles` of its rows, and registers for `sums` tiles of sums."""
    dim, size = q.shape[3], q.dtype.size
    sides = 1 << (-(-sums * dim // 128) - 1).bit_length()  # so that a lane's sums are at most 32 floats
    width = -(-dim // (_EIGHT * sides)) * _EIGHT * sides
    most = 32 if dim <= 64 else 16
    for blocks, others in ((4, most), (2, most), (1, most), (1, 8)):
        rows = _EIGHT * blocks
        numbers = (tiles * rows + others) * (width * size + 16)
        floats = tiles * rows * (others + 4) + max(rows, 2 * others)
        if numbers + 4 * floats <= _MOST_BYTES:
            break
    return Form(blocks, sides, others)


def _grid(form: Form, rows: int, heads: int, batch: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    simdgroups = form.blocks * form.sides
    return (-(-rows // (_EIGHT * form.blocks)) * LANES, heads * simdgroups, batch), (LANES, simdgroups, 1)


def _template(q: mx.array, params: FlashParams, form: Form) -> dict[str, int | bool | mx.Dtype]:
    return {
        "T": q.dtype,
        "D": q.shape[3],
        "BLOCKS": form.blocks,
        "SIDES": form.sides,
        "N": form.others,
        "FIRSTS": int(params.first.size > 1),
        "CAUSAL": params.causal,
        "SEGMENTED": params.segments is not None,
        "CAPPED": params.softcap > 0,
    }


def _scalars(params: FlashParams) -> dict[str, Input]:
    """Kernel inputs for `params`, including segments."""
    return {
        "first": params.first,
        "segments": params.first if params.segments is None else mx.contiguous(params.segments),
        "scale": params.scale,
        "softcap": params.softcap,
        "window": params.window,
        "chunk": params.chunk,
    }

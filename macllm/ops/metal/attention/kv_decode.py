"""Launcher of decode attention (few queries over a cache): kv_decode, kv_decode_packed, kv_combine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from .. import LANES, Input, KernelCall, launch

MOST_QUERIES = 16
MOST_DIMS = 256
_CHUNKS = (1024, 512, 256)
"""Keys per threadgroup: larger chunks leave fewer partial sums to combine."""
_ENOUGH = 128  # threadgroups that occupy a large GPU
_EIGHT = 8  # numbers of a key per lane
_ROWS = 2  # per simdgroup: their queries and sums stay in registers
_MOST_TILES, _SIMDGROUPS = 8, 8


@dataclass(frozen=True)
class DecodeParams:
    """Softmax and mask parameters; `first` (B,) or (1,) is the first slot after padding."""

    scale: float
    causal: bool
    first: mx.array
    window: int = 0
    softcap: float = 0.0
    sinks: mx.array | None = None


def supports(q: mx.array) -> bool:
    """True if a kernel supports these queries (B, H, L, D)."""
    return q.shape[2] <= MOST_QUERIES and q.shape[3] <= MOST_DIMS and q.shape[3] % _EIGHT == 0


def run(
    q: mx.array, parts: Mapping[str, mx.array], params: DecodeParams, *, key_bits: int = 0, value_bits: int = 0
) -> mx.array:
    """(B, H, L, D) over `parts`, dense or packed keys and values -> (B, H, L, D)."""
    call = decode(q, parts, params, key_bits=key_bits, value_bits=value_bits)
    out, stats = launch(call)
    return out if stats.shape[3] == 1 else launch(combine(q, out, stats, params))[0]


def decode(
    q: mx.array, parts: Mapping[str, mx.array], params: DecodeParams, *, key_bits: int = 0, value_bits: int = 0
) -> KernelCall:
    """Partial sums of the chunks, or the result if there is one chunk; parts are (B, K, S, ...)."""
    (batch, heads, length, dim), (_, kv_heads, count, _) = q.shape, next(iter(parts.values())).shape
    # Keys before the window are not read.
    low = max(0, count - length + 1 - params.window) if params.window else 0
    chunk = chunk_size(count - low, kv_heads * batch)
    chunks = -(-(count - low) // chunk)
    group = heads // kv_heads
    tiles = min(_MOST_TILES, -(-group * length // _ROWS))
    blocks = -(-group * length // (_ROWS * tiles))
    splits = max(1, _SIMDGROUPS // tiles)
    whole = chunks == 1
    inputs: dict[str, Input] = {
        "q": mx.contiguous(q),
        **parts,
        "first": params.first,
        "sinks": q if params.sinks is None else params.sinks,
        "scale": params.scale,
        "softcap": params.softcap,
        "window": params.window,
        "low": low,
    }
    template: dict[str, int | bool | mx.Dtype] = {
        "T": q.dtype,
        "D": dim,
        "K": kv_heads,
        "G": group,
        "PARTS": 1 << (dim // _EIGHT - 1).bit_length(),
        "R": _ROWS,
        "TILES": tiles,
        "SPLITS": splits,
        "CHUNK": chunk,
        "FIRSTS": int(params.first.size > 1),
        "CAUSAL": params.causal,
        "CAPPED": params.softcap > 0,
        "HAS_SINKS": params.sinks is not None,
        "WHOLE": whole,
    }
    if key_bits:
        width = parts["k_words"].shape[3] * 32 // key_bits
        template |= {"K_BITS": key_bits, "V_BITS": value_bits}
        template["GROUP"] = width // parts["k_scales"].shape[3]
    out = (q.shape, q.dtype) if whole else ((batch, heads, length, chunks, dim), mx.float32)
    return KernelCall(
        "kv_decode_packed" if key_bits else "kv_decode",
        inputs,
        {"out": out, "stats": ((batch, heads, length, chunks, 2), mx.float32)},
        (chunks * LANES, blocks * kv_heads * tiles * splits, batch),
        (LANES, tiles * splits, 1),
        template,
    )


def chunk_size(count: int, heads: int) -> int:
    """Keys per chunk, for `count` keys in each of `heads` heads."""
    return next((chunk for chunk in _CHUNKS if count * heads >= _ENOUGH * chunk), _CHUNKS[-1])


def combine(q: mx.array, sums: mx.array, stats: mx.array, params: DecodeParams) -> KernelCall:
    """(B, H, L, D) from the chunks' partial sums."""
    batch, heads, length, dim = q.shape
    return KernelCall(
        "kv_combine",
        {"sums": sums, "stats": stats, "sinks": q if params.sinks is None else params.sinks},
        {"out": (q.shape, q.dtype)},
        (LANES, batch * heads * length, 1),
        (LANES, 1, 1),
        {"T": q.dtype, "D": dim, "H": heads, "HAS_SINKS": params.sinks is not None},
    )

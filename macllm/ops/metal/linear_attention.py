"""Launcher of linear attention and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import mlx.core as mx

from . import DTYPES, LANES, Input, KernelCall, launch

CHUNK = 64
"""Rows that attend to one another directly; a state holds those before them."""
_ROWS = 8  # per simdgroup
_MOST_COLUMNS, _MOST_STATE_COLUMNS = 128, 64  # per simdgroup, in registers
_SIMDGROUPS = 8  # per threadgroup, at most
_DECODE_COLUMNS = 32  # per threadgroup


def supports(q: mx.array, k: mx.array, v: mx.array) -> bool:
    """True if kernels support these features (B, H, L, M) and values (B, H, L, D)."""
    return all(x.dtype in DTYPES and x.shape[3] % 8 == 0 for x in (q, k, v)) and q.shape == k.shape


def run(
    q: mx.array, k: mx.array, v: mx.array, sums: mx.array, norm: mx.array, *, causal: bool
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """The result (B, H, L, D), the state after it, and the divisor of the result, (B, H, L) float32."""
    length = v.shape[2]
    sums, norm = mx.contiguous(sums), mx.contiguous(norm)
    if length == 1:
        out, last_sums, last_norm, totals = launch(decode(q, k, v, sums, norm))
        return out, last_sums, last_norm, totals
    q, k, v = (whole(x) for x in (q, k, v))
    before, norms, last_sums, last_norm = launch(states(k, v, sums, norm, causal=causal))
    if not causal:
        before, norms = last_sums[:, :, None], last_norm[:, :, None]
    out, totals = launch(attend(q, k, v, before, norms, causal=causal))
    return out[:, :, :length], last_sums, last_norm, totals[:, :, :length]


def gradients(
    primals: Sequence[mx.array], slopes: Sequence[mx.array], out: mx.array, totals: mx.array, *, causal: bool
) -> list[mx.array]:
    """Gradients of q, k, v, sums and norm, from those of out and state (`slopes`) and divisor `totals`."""
    q, k, v, sums, norm = (mx.contiguous(x) for x in primals)
    length = v.shape[2]
    part = mx.where(totals > 0, 1 / totals, 0)
    direct = slopes[0].astype(mx.float32) * part[..., None]
    extra = -(direct * out.astype(mx.float32)).sum(-1)
    q, k, v, direct, extra = (whole(x) for x in (q, k, v, direct, extra))
    before, norms, last_sums, last_norm = launch(states(k, v, sums, norm, causal=causal))
    after, norms_after, dsums, dnorm = launch(
        states(q, direct, mx.contiguous(slopes[1]), mx.contiguous(slopes[2]), causal=causal, extra=extra)
    )
    if not causal:
        before, norms, after, norms_after = (x[:, :, None] for x in (last_sums, last_norm, dsums, dnorm))
    dq = gradient((direct, v, k), extra, (before, norms), q.dtype, causal=causal, side=1)
    dk = gradient((v, direct, q), extra, (after, norms_after), k.dtype, causal=causal, side=2)
    dv = gradient((k, q, direct), extra, (after, norms_after), v.dtype, causal=causal, side=0)
    return [*(launch(call)[0][:, :, :length] for call in (dq, dk, dv)), dsums, dnorm]


def states(
    a: mx.array, b: mx.array, sums: mx.array, norm: mx.array, *, causal: bool, extra: mx.array | None = None
) -> KernelCall:
    """States before each chunk, and the last; with `extra`, in reverse. One chunk if not causal."""
    (batch, heads, length, features), dim = a.shape, b.shape[3]
    size = CHUNK if causal else length
    chunks = -(-length // size)
    width, tall = _slab(dim, _MOST_STATE_COLUMNS), features // _ROWS
    inputs: dict[str, Input] = {"a": a, "b": b, "extra": norm if extra is None else extra}
    inputs |= {"first_sums": sums, "first_norm": norm, "chunks": chunks, "size": size}
    return KernelCall(
        "linear_states",
        inputs,
        {
            "states": ((batch, heads, chunks, features, dim), mx.float32),
            "norms": ((batch, heads, chunks, features), mx.float32),
            "last_sums": ((batch, heads, features, dim), mx.float32),
            "last_norm": ((batch, heads, features), mx.float32),
        },
        (LANES * (dim // width), tall, batch * heads),
        (LANES, gcd(tall, _SIMDGROUPS), 1),
        {"M": features, "D": dim, "W": width, "BACKWARDS": extra is not None, "WEIGHTED": extra is not None},
    )


def attend(q: mx.array, k: mx.array, v: mx.array, before: mx.array, norms: mx.array, *, causal: bool) -> KernelCall:
    """(B, H, L, D), and its divisor (B, H, L) float32."""
    dim = v.shape[3]
    width = _slab(dim, _MOST_COLUMNS)
    grid, threadgroup = _grid(v, width)
    return KernelCall(
        "linear_attention",
        {"q": q, "k": k, "v": v, "states": before, "norms": norms},
        {"out": (v.shape, v.dtype), "totals": (v.shape[:3], mx.float32)},
        grid,
        threadgroup,
        {"M": q.shape[3], "D": dim, "W": width, "CHUNK": CHUNK, "CAUSAL": causal},
    )


def gradient(
    rows: tuple[mx.array, mx.array, mx.array],
    extra: mx.array,
    state: tuple[mx.array, mx.array],
    dtype: mx.Dtype,
    *,
    causal: bool,
    side: int,
) -> KernelCall:
    """(B, H, L, U): gradient of q (`side` 1), k (2) or v (0) from `rows` x, y (B, H, L, P) and values."""
    x, y, values = rows
    width = _slab(values.shape[3], _MOST_COLUMNS)
    grid, threadgroup = _grid(values, width)
    return KernelCall(
        "linear_attention_vjp",
        {"x": x, "y": y, "values": values, "extra": extra, "states": state[0], "norms": state[1]},
        {"out": (values.shape, dtype)},
        grid,
        threadgroup,
        {
            "P": x.shape[3],
            "U": values.shape[3],
            "W": width,
            "CHUNK": CHUNK,
            "CAUSAL": causal,
            "REVERSE": side != 1,
            "TRANSPOSED": side != 0,
            "SIDE": side,
        },
    )


def decode(q: mx.array, k: mx.array, v: mx.array, sums: mx.array, norm: mx.array) -> KernelCall:
    """One token: (B, H, 1, D), the new state, and the divisor of the result."""
    batch, heads, _, dim = v.shape
    inputs: dict[str, Input] = {name: mx.contiguous(x) for name, x in (("q", q), ("k", k), ("v", v))}
    return KernelCall(
        "linear_decode",
        inputs | {"sums": sums, "norm": norm},
        {
            "out": (v.shape, v.dtype),
            "last_sums": (sums.shape, mx.float32),
            "last_norm": (norm.shape, mx.float32),
            "totals": (v.shape[:3], mx.float32),
        },
        (LANES * -(-dim // _DECODE_COLUMNS), _SIMDGROUPS, batch * heads),
        (LANES, _SIMDGROUPS, 1),
        {"T": v.dtype},
    )


def whole(x: mx.array) -> mx.array:
    """Contiguous (B, H, L, ...), zero-padded to whole tiles: keys without features have no weight."""
    more = -x.shape[2] % _ROWS
    return mx.contiguous(mx.pad(x, [(0, 0), (0, 0), (0, more), *[(0, 0)] * (x.ndim - 3)]) if more else x)


def _grid(values: mx.array, width: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Threads and threadgroups for all columns of all rows."""
    batch, heads, length, columns = values.shape
    groups = -(-length // (_ROWS * _SIMDGROUPS)) * _SIMDGROUPS
    return (LANES * (columns // width), groups, batch * heads), (LANES, _SIMDGROUPS, 1)


def _slab(columns: int, most: int) -> int:
    """Columns per simdgroup, at most `most`, that divide `columns`."""
    return next(width for width in range(min(most, columns), 0, -8) if columns % width == 0)

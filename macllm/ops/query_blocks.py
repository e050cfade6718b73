"""Exact attention by blocks of queries: memory linear in the length, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .attention_mask import AttentionMask, MaskArray
from .kv import KV, Dense
from .recompute import after

# At these lengths and sizes blocks are no slower than all scores at once, as hidden blocks are left out.
SHORTEST, _SIZE = 1024, 128

Attend = Callable[..., mx.array]
"""Attention of q (B, H, L, Dh) over k, v (B, K, S, Dh): `attend(mask, q, k, v, *sinks)`."""


class QueryBlock(NamedTuple):
    """Queries, the keys that any of them sees, and the mask of the former over the latter."""

    queries: slice
    keys: slice
    mask: MaskArray


def supports(q: mx.array, kv: KV, mask: AttentionMask | None) -> bool:
    """True for a long sequence over itself, with a structured mask."""
    same = isinstance(kv, Dense) and kv.keys.shape[2] == q.shape[2] >= SHORTEST
    return same and mask is not None and not mask.is_cached


def attention_in_blocks(attend: Attend, q: mx.array, kv: Dense, mask: AttentionMask, *sinks: mx.array) -> mx.array:
    """`attend` over the whole sequence: (B, H, L, Dh), 2x (B, K, L, Dh) -> (B, H, L, Dh).

    A block's scores are in memory while it is computed, and are computed again for its gradients.
    """
    length = q.shape[2]
    blocks = [block_of(mask, first, min(first + _SIZE, length), length) for first in range(0, length, _SIZE)]

    def run(q: mx.array, keys: mx.array, values: mx.array, *sinks: mx.array) -> mx.array:
        done: list[mx.array] = []
        for block in blocks:
            some = after(q[:, :, block.queries], done[-1:])
            done.append(attend(block.mask, some, keys[:, :, block.keys], values[:, :, block.keys], *sinks))
        return mx.concatenate(done, axis=2)

    def gradients(primals: Sequence[mx.array], cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        q, keys, values, *sinks = primals
        sums = [mx.zeros(x.shape) for x in (keys, values, *sinks)]
        slopes: list[mx.array] = []
        for block in blocks:
            mask = block.mask

            def run(*arrays: mx.array, mask: MaskArray = mask) -> mx.array:
                return attend(mask, *arrays)

            some = after(q[:, :, block.queries], [cotangent, *slopes[-1:], *sums])
            inputs = [some, keys[:, :, block.keys], values[:, :, block.keys], *sinks]
            slope, *found = mx.vjp(run, inputs, [cotangent[:, :, block.queries]])[1]
            slopes.append(slope)
            for total, one in zip(sums[:2], found, strict=False):
                total[:, :, block.keys] = total[:, :, block.keys] + one
            sums[2:] = [total + one for total, one in zip(sums[2:], found[2:], strict=True)]
        cast = (total.astype(x.dtype) for total, x in zip(sums, (keys, values, *sinks), strict=True))
        return mx.concatenate(slopes, axis=2), *cast

    function: Any = mx.custom_function(run)
    function.vjp(gradients)
    return function(q, kv.keys, kv.values, *sinks)


def block_of(mask: AttentionMask, first: int, end: int, length: int) -> QueryBlock:
    """The queries `first` .. `end` of a sequence over itself, with the keys that they see."""
    low, high = 0, end if mask.causal else length
    if mask.window:
        low, high = max(0, first - mask.window + 1), min(high, end - 1 + mask.window)
    if mask.chunk:
        begins = [begin + (first - begin) // mask.chunk * mask.chunk for begin in mask.first]
        low = max(low, 0, min(begins))
    queries, keys = slice(first, end), slice(low, high)
    if not mask.is_masked:
        return QueryBlock(queries, keys, "causal" if mask.causal else None)
    q, k = mx.arange(first, end)[:, None], mx.arange(low, high)
    begin = mask.firsts[:, None, None, None]
    seen = k >= begin
    if mask.causal:
        seen = seen & (k <= q)
    if mask.window:
        seen = seen & (mx.abs(q - k) < mask.window)
    if mask.chunk:
        seen = seen & (mx.floor((k - begin) / mask.chunk) == mx.floor((q - begin) / mask.chunk))
    if mask.lengths is not None:
        seen = seen & (k < mask.lengths[:, None, None, None])
    return QueryBlock(queries, keys, seen | (k == q))  # a query of padding sees itself, so that no row is empty

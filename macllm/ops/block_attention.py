"""Block-sparse attention: each block of queries attends to a list of blocks of keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx

from .kv import Dense

_NO_BLOCK = -1  # an unused entry of a list


class Blocks(NamedTuple):
    """The blocks of `size` keys that each block of as many queries sees.

    `lists` is a numpy array (1 or H, N, W) of ints: W blocks for each of N = ceil(L / size), -1 for none. A block that
    is listed twice counts twice.
    """

    lists: Any
    size: int


class SharedKeys(NamedTuple):
    """Keys and values of global tokens, which every query sees: (B, H, G, Dh) twice.

    `seen` (B, G) bool is False for the padding among them. `listed` (B, S) bool marks their positions, which the lists
    of blocks then leave out.
    """

    keys: mx.array
    values: mx.array
    seen: mx.array
    listed: mx.array


def block_attention(
    q: mx.array,
    kv: Dense,
    blocks: Blocks,
    *,
    scale: float,
    window: int = 0,
    lengths: mx.array | None = None,
    shared: SharedKeys | None = None,
) -> mx.array:
    """softmax(scale * q k^T) v over listed blocks: (B, H, L, Dh), 2x (B, H, S, Dh) -> (B, H, L, Dh).

    A `window` hides keys that many positions away or more; queries and keys then have the same positions. The first
    `lengths` (B,) keys of each row are real. A query that sees no key gets the mean of the listed values.
    """
    batch, heads, length, dim = q.shape
    lists, size = mx.array(blocks.lists), blocks.size  # (1 or H, N, W)
    queries = _blocked(q, size)  # (B, H, N, size, Dh)
    keys, values = (_gathered(_blocked(x, size), lists) for x in (kv.keys, kv.values))  # (B, H, N, W * size, Dh)
    seen = _seen(lists, size, kv.keys.shape[2], window, lengths, shared)
    scores = (queries * scale) @ keys.swapaxes(-1, -2)  # (B, H, N, size, W * size)
    lowest = mx.finfo(scores.dtype).min
    scores = mx.where(seen, scores, lowest)
    if shared is not None:
        extra = (queries * scale) @ shared.keys[:, :, None].swapaxes(-1, -2)  # (B, H, N, size, G)
        scores = mx.concatenate([scores, mx.where(shared.seen[:, None, None, None], extra, lowest)], axis=-1)
    weights = mx.softmax(scores, axis=-1, precise=True)
    near = keys.shape[3]
    y = weights[..., :near] @ values
    if shared is not None:
        y = y + weights[..., near:] @ shared.values[:, :, None]
    return y.reshape(batch, heads, -1, dim)[:, :, :length]


def _seen(
    lists: mx.array, size: int, count: int, window: int, lengths: mx.array | None, shared: SharedKeys | None
) -> mx.array:
    """bool (1 or B, 1 or H, N, 1 or size, W * size): the listed keys that a query sees."""
    within = mx.arange(size)
    at = mx.where(lists == _NO_BLOCK, count, lists * size)[..., None] + within
    at = at.reshape(*lists.shape[:2], 1, -1)[None]  # (1, 1 or H, N, 1, W * size)
    seen = at < (count if lengths is None else mx.minimum(lengths, count)[:, None, None, None, None])
    if window:
        own = (mx.arange(lists.shape[1])[:, None] * size + within)[..., None]  # (N, size, 1)
        seen = seen & (mx.abs(at - own) < window)
    if shared is not None:
        seen = seen & ~shared.listed[:, mx.minimum(at[0], count - 1)]
    return seen


def _blocked(x: mx.array, size: int) -> mx.array:
    """(B, H, L, Dh) -> (B, H, ceil(L / size), size, Dh), filled up with zeros."""
    short = -x.shape[2] % size
    padded = mx.pad(x, [(0, 0), (0, 0), (0, short), (0, 0)]) if short else x
    return padded.reshape(*x.shape[:2], -1, size, x.shape[3])


def _gathered(x: mx.array, lists: mx.array) -> mx.array:
    """Blocks (B, H, M, size, Dh) in the order of the lists -> (B, H, N, W * size, Dh)."""
    batch, heads, count, size, dim = x.shape
    index = mx.maximum(lists, 0)
    if lists.shape[0] == 1:
        taken = mx.take(x, index[0].flatten(), axis=2)
    else:
        first = mx.arange(heads)[:, None, None] * count  # of a head, among the blocks of all heads
        taken = mx.take(x.reshape(batch, heads * count, size, dim), (first + index).flatten(), axis=1)
    return taken.reshape(batch, heads, lists.shape[1], -1, dim)

"""Attention over listed blocks of keys: windows, blocks that see and are seen by all, and blocks drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

import mlx.core as mx

from . import dispatch
from .metal import sparse_attention as plan


class Lists(NamedTuple):
    """Blocks listed for each block: those of block i are others[starts[i]:starts[i + 1]], in order; int32 both."""

    starts: mx.array
    others: mx.array


@dataclass(frozen=True)
class Pattern:
    """Which blocks of keys each block of queries sees.

    `window` on each side of its own (before it, if `causal`), the first `global_blocks`, whose queries in turn see all
    blocks, and `random_blocks` of the rest, drawn by `seed`.
    Longformer: arXiv:2004.05150, 3.1; with random blocks BigBird: arXiv:2007.14062, 2.
    """

    block: int = 32
    window: int = 1
    global_blocks: int = 1
    random_blocks: int = 0
    seed: int = 0
    causal: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for blocks of another size than 16 and 32, and for counts below 0."""
        if self.block not in (16, 32) or min(self.window, self.global_blocks, self.random_blocks, self.seed) < 0:
            raise ValueError(f"{self} has blocks of another size than 16 or 32, or a count below 0")

    def rows(self, blocks: int) -> list[list[int]]:
        """The key blocks that each of so many query blocks sees, in order."""
        return [self._row(row, row + 1 if self.causal else blocks) for row in range(blocks)]

    def _row(self, row: int, end: int) -> list[int]:
        if row < self.global_blocks:
            return list(range(end))
        seen = {*range(self.global_blocks), *range(max(0, row - self.window), min(end, row + self.window + 1))}
        wanted = min(len(seen) + self.random_blocks, end)
        # Of Python's generator, random() alone draws the same in every version.
        draw = Random((self.seed << 32) + row).random
        while len(seen) < wanted:
            seen.add(int(draw() * end))
        return sorted(seen)

    def lists(self, blocks: int) -> tuple[Lists, Lists]:
        """The key blocks of each of so many query blocks, and the query blocks that see each key block."""
        return _lists(self, blocks)

    def mask(self, length: int) -> mx.array:
        """(length, length) bool: whether a query (first axis) sees a key."""
        blocks = -(-length // self.block)
        rows = [[block in seen for block in range(blocks)] for seen in map(set, self.rows(blocks))]
        mask = mx.repeat(mx.repeat(mx.array(rows), self.block, 0), self.block, 1)[:length, :length]
        return mx.tril(mask) if self.causal else mask


@lru_cache(maxsize=64)
def _lists(pattern: Pattern, blocks: int) -> tuple[Lists, Lists]:
    rows = pattern.rows(blocks)
    columns: list[list[int]] = [[] for _ in rows]
    for row, seen in enumerate(rows):
        for block in seen:
            columns[block].append(row)
    return _listed(rows), _listed(columns)


def _listed(rows: list[list[int]]) -> Lists:
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row))
    return Lists(mx.array(starts, mx.int32), mx.array([block for row in rows for block in row], mx.int32))


def sparse_attention(
    q: mx.array, k: mx.array, v: mx.array, pattern: Pattern, *, scale: float, lengths: mx.array | None = None
) -> mx.array:
    """Attention of H query heads over K key/value heads (H a multiple of K) where `pattern` allows it.

    (B, H, L, D) and twice (B, K, L, D) -> (B, H, L, D). Of each batch row the first `lengths` (B,) positions count:
    what comes after is seen by nobody, and its results are 0. Time and memory grow with the blocks that are listed.
    """
    if plan.serves(q, k, v) and dispatch.metal("sparse_attention", q.dtype, q.shape[2]):
        done = dispatch.attempt("sparse_attention", lambda: _kernels(q, k, v, pattern, scale, lengths))
        if done is not None:
            return done
    return sparse_attention_reference(q, k, v, pattern, scale=scale, lengths=lengths)


def sparse_attention_reference(
    q: mx.array, k: mx.array, v: mx.array, pattern: Pattern, *, scale: float, lengths: mx.array | None = None
) -> mx.array:
    """The same from its definition, with all scores in memory; in float32."""
    B, H, L, D = q.shape
    K = k.shape[1]
    wide, keys, values = (x.astype(mx.float32) for x in (q.reshape(B, K, H // K, L, D), k[:, :, None], v[:, :, None]))
    mask = pattern.mask(L)
    if lengths is not None:
        there = mx.arange(L) < lengths.reshape(B, 1, 1, 1, 1)
        mask = mask & there & there.swapaxes(-1, -2)
    scores = mx.where(mask, scale * wide @ keys.swapaxes(-1, -2), -1e30)
    weights = mx.where(mask, mx.softmax(scores, axis=-1), 0)
    return (weights @ values).reshape(B, H, L, v.shape[3]).astype(q.dtype)


def _kernels(
    q: mx.array, k: mx.array, v: mx.array, pattern: Pattern, scale: float, lengths: mx.array | None
) -> mx.array:
    length = q.shape[2]
    counts = mx.array([length]) if lengths is None else lengths.astype(mx.int32)
    lists = pattern.lists(-(-length // pattern.block))
    rules = plan.Rules(pattern.block, *lists, counts, scale, pattern.causal)

    def run(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        return plan.run(q, k, v, rules)

    def gradients(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        (q, k, v), (out, lse) = primals, outputs
        arrays = {"q": q, "k": k, "v": v, "out": out, "lse": lse, "slopes": cotangents[0]}
        return tuple(plan.gradients(arrays, cotangents[1], rules))

    attend: Any = mx.custom_function(run)
    attend.vjp(gradients)
    return attend(q, k, v)[0]

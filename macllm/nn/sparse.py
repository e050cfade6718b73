"""Sparse attention: windows with global tokens, and blocks with random blocks."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mlx.core as mx

from macllm.ops.attention import attention
from macllm.ops.block_attention import Blocks, SharedKeys, block_attention
from macllm.ops.kv import Dense
from macllm.ops.norm import normalize
from macllm.ops.weights import NormWeight

from .attention import Projections
from .linear import Linear
from .mask import GlobalTokens, Masks
from .spec import BlockSparseSpec, WindowGlobalSpec
from .state.layer import LayerState

_SMALLEST = 32  # positions in a block of a window: smaller blocks cost more copying than arithmetic


class WindowGlobalAttention(Projections):
    """A two-sided window, and global tokens with separate projections (arXiv:2004.05150, 3.1)."""

    def __init__(self, dim: int, spec: WindowGlobalSpec):
        super().__init__(dim, spec)
        width = spec.num_heads * spec.head_dim
        self.window = spec.mask.window
        self.q_global, self.k_global, self.v_global = (Linear(dim, width, bias=spec.qkv_bias) for _ in range(3))

    def __call__(
        self,
        x: mx.array,
        masks: Masks,
        state: LayerState | None = None,
        *,
        norm: NormWeight = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """residual + attention(norm(x)): (B, L, D) -> (B, L, D)."""
        x, chosen = normalize(x, norm), masks.global_tokens
        q = self.queries(self.q_proj(x))  # (B, H, L, Dh)
        keys, values = self.k_proj(x), self.v_proj(x)  # (B, L, H * Dh)
        shared = None
        if chosen is not None:
            shared = SharedKeys(
                *self.keys_and_values(chosen.take(keys), chosen.take(values)), chosen.there, chosen.mask
            )
        size = min(max(self.window - 1, _SMALLEST), x.shape[1])
        y = block_attention(
            q,
            Dense(*self.keys_and_values(keys, values)),
            Blocks(_neighbours(-(-x.shape[1] // size)), size),
            scale=self.spec.scale,
            window=self.window,
            lengths=masks.lengths,
            shared=shared,
        )
        y = _joined(y)  # (B, L, H * Dh)
        y = y if chosen is None else chosen.put(self._of_all(x, chosen, masks.lengths), y)  # (B, L, H * Dh)
        return self.output(y, residual)

    def _of_all(self, x: mx.array, chosen: GlobalTokens, lengths: mx.array | None) -> mx.array:
        """Attention of the global tokens over all tokens: (B, G, H * Dh)."""
        q = self.queries(self.q_global(chosen.take(x)))  # (B, H, G, Dh)
        kv = Dense(*self.keys_and_values(self.k_global(x), self.v_global(x)))  # (B, H, L, Dh) twice
        return _joined(attention(q, kv, scale=self.spec.scale, mask=_real(x.shape[1], lengths)))


class BlockSparseAttention(Projections):
    """Attention to neighbouring blocks, the first, the last, and some random ones (arXiv:2007.14062, 2).

    Full attention if a sequence has too few blocks to be sparse.
    """

    spec: BlockSparseSpec

    def __call__(
        self,
        x: mx.array,
        masks: Masks,
        state: LayerState | None = None,
        *,
        norm: NormWeight = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """residual + attention(norm(x)): (B, L, D) -> (B, L, D)."""
        x = normalize(x, norm)  # (B, L, D)
        q = self.queries(self.q_proj(x))  # (B, H, L, Dh)
        kv = Dense(*self.keys_and_values(self.k_proj(x), self.v_proj(x)))  # (B, H, L, Dh) twice
        s, length = self.spec, x.shape[1]
        real = _real(length, masks.lengths)
        if length <= s.longest_full:
            return self.output(_joined(attention(q, kv, scale=s.scale, mask=real)), residual)
        last = (length - 1) // s.block_size * s.block_size  # first position of the last block
        first, middle, rest = (part for part in mx.split(q, [s.block_size, last], axis=2))
        ends = attention(mx.concatenate([first, rest], axis=2), kv, scale=s.scale, mask=real)  # (B, H, two blocks, Dh)
        blocks = Blocks(_blocks(s, last // s.block_size + 1, self.training), s.block_size)
        y = block_attention(middle, kv, blocks, scale=s.scale, lengths=masks.lengths)  # (B, H, the others, Dh)
        ahead, behind = mx.split(ends, [s.block_size], axis=2)
        return self.output(_joined(mx.concatenate([ahead, y, behind], axis=2)), residual)


def _joined(y: mx.array) -> mx.array:
    """(B, H, L, Dh) -> (B, L, H * Dh)."""
    return y.transpose(0, 2, 1, 3).flatten(2)


def _real(count: int, lengths: mx.array | None) -> mx.array | None:
    """(B, 1, 1, S) bool: the keys that are not padding."""
    return None if lengths is None else (mx.arange(count) < lengths[:, None])[:, None, None]


@lru_cache(maxsize=64)
def _neighbours(count: int) -> Any:
    """Each of `count` blocks with those on either side, -1 beyond the ends: (1, N, 3) int32."""
    import numpy as np

    near = np.arange(count)[:, None] + np.arange(-1, 2)
    return np.where(near < count, near, -1)[None].astype(np.int32)


@lru_cache(maxsize=64)
def _blocks(spec: BlockSparseSpec, count: int, training: bool) -> Any:
    """Key blocks of every query block but the first and the last: (1 or H, N, 5 + R) int32.

    Random blocks are drawn in training, the same ones at every step; in evaluation each is the first block once more,
    as in transformers.
    """
    import numpy as np

    row = np.arange(1, count - 1)[:, None]
    near = row + np.arange(-1, 2)
    ends = np.where(row == [1, count - 2], -1, [0, count - 1])  # neighbours of the second and the last but one already
    fixed = np.concatenate([near, ends], axis=1)  # (N, 5)
    if training:
        drawn = draw_blocks(spec, count)
        fixed = np.broadcast_to(fixed, (spec.num_heads, *fixed.shape))
    else:
        drawn, fixed = np.zeros((1, count - 2, spec.num_random_blocks), int), fixed[None]
    return np.concatenate([fixed, drawn], axis=2).astype(np.int32)


def draw_blocks(spec: BlockSparseSpec, count: int) -> Any:
    """Random key blocks of every query block but the first and the last: (H, N, R) ints.

    Drawn in transformers' order from numpy's legacy generator, so that the blocks are equal.
    """
    import numpy as np

    random = np.random.RandomState(spec.seed)
    if count * spec.block_size in (1024, 3072, 4096):  # lengths of the paper, which draw among the first 1024 positions
        every = [_drawn_among_first(random, spec) for _ in range(spec.num_heads)]
        return np.stack(every)[:, : count - 2]
    wanted, end = spec.num_random_blocks, 2 * spec.num_random_blocks + 5
    drawn = np.zeros((spec.num_heads, count, wanted), int)
    for row in range(1, count) if wanted else ():
        barred = {row - 1, row, row + 1, 0, end - 1}
        barred |= {end - 2} if row == 1 else {1} if row == end - 2 else set()
        for head in range(spec.num_heads):
            order = random.permutation(np.arange(end, dtype=np.int32))
            drawn[head, row] = [block for block in order if block not in barred][:wanted]
    return drawn[:, 1:-1]


def _drawn_among_first(random: Any, spec: BlockSparseSpec) -> Any:
    """One head's random blocks, for as many blocks as the model has positions for: (N, R) ints."""
    import numpy as np

    count, size = spec.max_positions // spec.block_size, spec.block_size
    inner = np.arange(1, count - 1, dtype=np.int32)
    last = 1024 // size - 1 if 2 * size < 1024 else count - 1
    drawn = np.zeros((count - 2, spec.num_random_blocks), int)
    for row in range(1, count - 1):
        before, after = inner[: row - 2], inner[row + 1 : last]
        if row in (count - 3, count - 2) and row > 2:
            choice = inner[:last]
        elif row <= 2:
            choice = inner[row + 1 : last]
        elif row - 2 > last:
            choice = inner[:last]
        else:
            choice = before if row + 1 == last else np.concatenate([before, after])
        drawn[row - 1] = random.permutation(choice)[: spec.num_random_blocks]
    return drawn

"""Launcher of sampling, in two dispatches."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .. import Input, KernelCall, launch

_BLOCKS, _RANKED = 64, 32  # blocks of the vocabulary, at most, and candidates per block


class Filters(NamedTuple):
    """Filters of the draw: top_k 0, top_p 1 and min_p 0 keep all tokens. The temperature is above 0."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def any(self) -> bool:
        """True if the filters may remove tokens."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def draw(logits: mx.array, uniform: mx.array, filters: Filters) -> list[mx.array]:
    """Tokens (B,) uint32 and their logprobs, from logits (B, V) and uniform numbers (B,) in [0, 1)."""
    values, indices, sums = launch(blocks(logits, filters))
    return launch(choose(logits, values, indices, sums, uniform, filters))


def blocks(logits: mx.array, filters: Filters) -> KernelCall:
    """The largest logits of each block, and its sums."""
    batch, vocabulary = logits.shape
    count = _count(vocabulary)
    return KernelCall(
        "sample_blocks",
        {"logits": mx.contiguous(logits), "temperature": filters.temperature},
        {
            "values": ((batch, count, _RANKED), mx.float32),
            "indices": ((batch, count, _RANKED), mx.int32),
            "sums": ((batch, count, 3), mx.float32),
        },
        (256 * count, batch, 1),
        (256, 1, 1),
        {"BLOCKS": count},
    )


def choose(
    logits: mx.array, values: mx.array, indices: mx.array, sums: mx.array, uniform: mx.array, filters: Filters
) -> KernelCall:
    """The token of each row, and its log-probability."""
    batch, vocabulary = logits.shape
    count = _count(vocabulary)
    inputs: dict[str, Input] = {"logits": mx.contiguous(logits), "values": values, "indices": indices, "sums": sums}
    inputs |= {"uniform": uniform, **filters._asdict()}
    return KernelCall(
        "sample_draw",
        inputs,
        {"token": ((batch,), mx.uint32), "logprob": ((batch,), mx.float32)},
        (1024, batch, 1),
        (1024, 1, 1),
        {"BLOCKS": count, "COUNT": 1 << (count * _RANKED - 1).bit_length(), "FILTERED": filters.any},
    )


def _count(vocabulary: int) -> int:
    """Number of blocks, none of them empty."""
    size = -(-vocabulary // min(_BLOCKS, -(-vocabulary // _RANKED)))
    return -(-vocabulary // size)

"""Keys and values of one attention layer.

Rows stay in order of time: a window is a slice of the buffer, not a ring, so attention's views are contiguous and its
mask needs no index arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import mlx.core as mx

from macllm.ops.head_params import Packing
from macllm.ops.kv import KV, Dense, Quantized, quantize

from ..mask import first_visible
from ..position import Span
from ..spec import Causal, MaskSpec
from .buffer import Arrays, Buffer

SLACK = 64  # extra slots that a window keeps, so that the cache can go back a few tokens


@dataclass(frozen=True)
class DenseCodec:
    """Rows in floating point."""

    def encode(self, rows: mx.array) -> Arrays:
        """(B, K, L, Dh) -> the stored arrays."""
        return (rows,)

    def view(self, keys: Arrays, values: Arrays, head_dim: int) -> KV:
        """The view for attention."""
        return Dense(keys[0], values[0])

    def packing(self, head_dim: int) -> Packing | None:
        """None: rows are not packed."""
        return None


@dataclass(frozen=True)
class QuantizedCodec:
    """Rows in 4 or 8 bits, in groups along the head; a head is padded to whole groups."""

    bits: int

    def encode(self, rows: mx.array) -> Arrays:
        """(B, K, L, Dh) -> packed, scales, biases."""
        return quantize(rows, self.bits, self.group_size(rows.shape[-1]))

    def view(self, keys: Arrays, values: Arrays, head_dim: int) -> KV:
        """The view for attention."""
        return Quantized(keys, values, self.bits, self.group_size(head_dim), head_dim)

    def packing(self, head_dim: int) -> Packing:
        """Bits and group size for heads of `head_dim`."""
        return Packing(self.bits, self.group_size(head_dim))

    def group_size(self, head_dim: int) -> int:
        """64 if it divides the head, else 32."""
        return 64 if head_dim % 64 == 0 else 32


Codec = DenseCodec | QuantizedCodec


class KeyValues:
    """Keys and values encoded by a codec; the mask decides which may be dropped."""

    def __init__(self, mask: MaskSpec, codec: Codec, left_padding: tuple[int, ...] | None = None):
        self.mask, self.codec, self.left_padding = mask, codec, left_padding
        self.head_dim = 0
        self._buffer = Buffer()

    @property
    def start(self) -> int:
        """The oldest slot held."""
        return self._buffer.start

    @property
    def length(self) -> int:
        """Slots filled so far, dropped ones included."""
        return self._buffer.end

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return self._buffer.nbytes

    def arrays(self) -> list[mx.array]:
        """Keys' then values' arrays, each (B, K, capacity, ...)."""
        return list(self._buffer.arrays())

    def packing(self, head_dim: int) -> Packing | None:
        """The packing of rows that `store` takes, for heads of `head_dim`; None for floating point."""
        return self.codec.packing(head_dim)

    def append(self, keys: mx.array, values: mx.array) -> tuple[KV, int]:
        """Store (B, K, L, Dh) twice; returns the keys and values for the L new queries, and their first slot."""
        return self.store((*self.codec.encode(keys), *self.codec.encode(values)), keys.shape[-1])

    def store(self, rows: Arrays, head_dim: int) -> tuple[KV, int]:
        """The same for keys and values already encoded, of heads of `head_dim`."""
        self.head_dim = head_dim
        first = self._first_visible(self.length)
        self._buffer.write(rows, first - SLACK)
        half, held = len(rows) // 2, self._buffer.read(first)
        return self.codec.view(held[:half], held[half:], head_dim), first

    def reserve(self) -> tuple[Arrays, int, mx.array | None]:
        """`Buffer.reserve` of the next slot."""
        return self._buffer.reserve(self._first_visible(self.length) - SLACK)

    def commit(self, written: mx.array) -> None:
        """`Buffer.commit` of the reserved slot."""
        self._buffer.commit(written)

    def nearest(self, length: int) -> int:
        """`length`, or 0 if a window has dropped keys that the query there would see."""
        return length if self.start == 0 or self._first_visible(length) >= self.start else 0

    def cut(self, length: int) -> None:
        """Go back to the first `length` slots, a length that `nearest` gives."""
        self._buffer.cut(length)

    def fork(self) -> Self:
        """An independent copy that shares the arrays until one writes."""
        copy = type(self)(self.mask, self.codec, self.left_padding)
        copy.head_dim, copy._buffer = self.head_dim, self._buffer.fork()
        return copy

    def select(self, rows: mx.array, left_padding: tuple[int, ...] | None) -> None:
        """Hold the sequences `rows` (N,) of the batch, which have N `left_padding`."""
        self._buffer.select(rows)
        self.left_padding = left_padding

    def filled(self) -> Arrays:
        """Keys' then values' rows in the slots still held, without spare capacity."""
        return self._buffer.read(self.start)

    def restore(self, rows: Arrays, length: int, head_dim: int) -> None:
        """Become the state that `filled()` these rows after `length` slots."""
        self._buffer.restore(rows, length)
        self.head_dim = head_dim

    def _first_visible(self, slot: int) -> int:
        return 0 if isinstance(self.mask, Causal) else first_visible(self.mask, Span(slot, 1, self.left_padding))

"""State of linear attention: sums over its keys, of constant size."""

from __future__ import annotations

from typing import Self

import mlx.core as mx

from macllm.ops.linear_attention import State


class FeatureSums:
    """Sums of one layer over the keys of `length` tokens."""

    head_dim = 0  # heads are not stored

    def __init__(self) -> None:
        self.length = 0
        self.sums: State | None = None  # None before the first token

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.arrays())

    def arrays(self) -> list[mx.array]:
        """The sums."""
        return [] if self.sums is None else list(self.sums)

    def advance(self, sums: State, count: int) -> None:
        """Become `sums`, `count` tokens later."""
        self.sums, self.length = sums, self.length + count

    def nearest(self, length: int) -> int:
        """`length` if it is the current one, else 0: sums cannot be taken back."""
        return length if length == self.length else 0

    def cut(self, length: int) -> None:
        """Go back to a length that `nearest` gives."""
        if length == 0:
            self.sums, self.length = None, 0

    def fork(self) -> Self:
        """An independent copy."""
        copy = type(self)()
        copy.sums, copy.length = self.sums, self.length
        return copy

    def select(self, rows: mx.array, left_padding: tuple[int, ...] | None) -> None:
        """Hold the sums of the sequences `rows` (N,) of the batch; padding is in none."""
        if self.sums is not None:
            self.sums = type(self.sums)(*(mx.take(array, rows, axis=0) for array in self.sums))

    def filled(self) -> tuple[mx.array, ...]:
        """The sums."""
        return tuple(self.arrays())

    def restore(self, rows: tuple[mx.array, ...], length: int, head_dim: int) -> None:
        """Become the state that `filled()` these sums after `length` tokens."""
        self.sums, self.length = (State(*rows) if rows else None), length

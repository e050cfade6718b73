"""The interface of a layer's decoding state."""

from __future__ import annotations

from typing import Protocol, Self

import mlx.core as mx


class LayerState(Protocol):
    """State of one layer over the tokens so far, for B rows."""

    head_dim: int

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        ...

    def arrays(self) -> list[mx.array]:
        """The arrays to evaluate so that nothing of this state is pending."""
        ...

    def nearest(self, length: int) -> int:
        """The longest length, at most `length`, that `cut` can go back to."""
        ...

    def cut(self, length: int) -> None:
        """Go back to the first `length` tokens, a length that `nearest` gives."""
        ...

    def fork(self) -> Self:
        """An independent copy; arrays are shared until one of the two writes."""
        ...

    def select(self, rows: mx.array, left_padding: tuple[int, ...] | None) -> None:
        """Hold the sequences `rows` (N,) of the batch, in this order; they have N `left_padding`."""
        ...

    def filled(self) -> tuple[mx.array, ...]:
        """The arrays to save, without spare capacity."""
        ...

    def restore(self, rows: tuple[mx.array, ...], length: int, head_dim: int) -> None:
        """Become the state that `filled()` these arrays after `length` tokens."""
        ...

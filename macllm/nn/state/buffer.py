"""Arrays with spare capacity along their axis of slots."""

from __future__ import annotations

from typing import Self

import mlx.core as mx

GROW = 256  # slots by which a buffer grows

Arrays = tuple[mx.array, ...]


class Buffer:
    """Slots [start, end) of arrays (B, K, capacity, ...), in order of time.

    The buffer moves to new arrays when the old ones are full or far too large, and before an op writes in place into
    slots that others can see.
    """

    def __init__(self) -> None:
        self.start = self.end = 0
        self._arrays: Arrays = ()
        self._shared = 0  # slots before it may be seen, or written, by others that hold the arrays
        self._pending: mx.array | None = None  # the result of an op that writes into them

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return sum(array.nbytes for array in self._arrays)

    @property
    def _capacity(self) -> int:
        return self._arrays[0].shape[2] if self._arrays else 0

    def arrays(self) -> Arrays:
        """The arrays at full capacity; later steps fill the slots after `end`."""
        self._shared = max(self._shared, self.end)
        return self._written()

    def read(self, first: int) -> Arrays:
        """Views of the slots from `first` on: (B, K, end - first, ...)."""
        return tuple(array[:, :, first - self.start : self.end - self.start] for array in self.arrays())

    def write(self, rows: Arrays, keep: int) -> None:
        """Append rows (B, K, L, ...); slots before `keep` may be dropped."""
        length = rows[0].shape[2]
        self._make_room(length, keep, rows)
        at = self.end - self.start
        self._arrays = tuple(array[...] for array in self._written())  # assignment would change what others hold
        for array, new in zip(self._arrays, rows, strict=True):
            array[:, :, at : at + length] = new
        self.end += length
        self._shared = 0

    def reserve(self, keep: int) -> tuple[Arrays, int, mx.array | None]:
        """The arrays, the index of the next slot in them, and the pending result to depend on.

        For an op that writes that slot in place; call `commit` after it. The buffer must not be empty.
        """
        self._make_room(1, keep, self._arrays)
        if self.end < self._shared:
            self._move(self._capacity, self.start, self._arrays)
        return self._arrays, self.end - self.start, self._pending

    def commit(self, written: mx.array) -> None:
        """Count the reserved slot as filled, once `written` is computed."""
        self._pending = written
        self.end += 1

    def cut(self, end: int) -> None:
        """Drop the slots from `end` on; an empty buffer frees its arrays."""
        self.end = end
        if end == 0:
            self.start, self._shared, self._arrays, self._pending = 0, 0, (), None

    def restore(self, rows: Arrays, end: int) -> None:
        """Hold rows (B, K, L, ...) as the slots before `end`."""
        self._arrays, self._pending = rows, None
        self.start, self.end = end - (rows[0].shape[2] if rows else 0), end
        self._shared = end

    def fork(self) -> Self:
        """A buffer with the same slots."""
        copy = type(self)()
        copy.start, copy.end, copy._arrays = self.start, self.end, self.arrays()
        copy._shared = self.start + self._capacity
        return copy

    def select(self, rows: mx.array) -> None:
        """Hold the sequences `rows` (N,) of the batch, in this order; one may come several times."""
        self._arrays = tuple(mx.take(array, rows, axis=0) for array in self._written())
        self._shared = 0

    def __getstate__(self) -> dict[str, object]:
        self._shared = self.start + self._capacity  # a copy holds the same arrays
        return self.__dict__.copy()

    def _written(self) -> Arrays:
        """The arrays once the pending result is computed."""
        if self._pending is not None:
            self._arrays, self._pending = tuple(mx.depends(list(self._arrays), [self._pending])), None
        return self._arrays

    def _make_room(self, length: int, keep: int, like: Arrays) -> None:
        keep = max(self.start, keep)
        size = self.end - keep + length
        fits = self.end - self.start + length <= self._capacity
        if fits and self._capacity <= 2 * (size + GROW):
            return
        spare = GROW if self._arrays else GROW // 4  # a prompt is often followed by a short answer
        self._move((size // spare + 1) * spare, keep, like)

    def _move(self, capacity: int, keep: int, like: Arrays) -> None:
        """Move the slots from `keep` on to new arrays with this capacity."""
        held = self.read(keep) if self._arrays else ()
        moved = []
        for n, array in enumerate(like):
            fresh = mx.zeros((*array.shape[:2], capacity, array.shape[3]), dtype=array.dtype)
            if held:
                fresh[:, :, : self.end - keep] = held[n]
            moved.append(fresh)
        self._arrays, self._shared, self.start = tuple(moved), 0, keep

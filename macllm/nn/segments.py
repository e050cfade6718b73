"""Sequences one after another in the rows of a batch, and side by side for what mixes their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx

# Sequences of a group are at most this part shorter than its longest, or this many tokens.
_PADDED_PART, _PADDED_TOKENS = 4, 8
_NONE = -1  # a slot that belongs to no token


@dataclass(frozen=True)
class Segments:
    """Sequences one after another in each row of a batch (B, `width`), none of which sees another.

    `lengths` has those of each row's sequences, in order. The rest of a row is padding.
    """

    lengths: tuple[tuple[int, ...], ...]
    width: int

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sequence."""
        return max((n for row in self.lengths for n in row), default=0)

    @cached_property
    def positions(self) -> mx.array:
        """Position of every token in its sequence, 0 in padding: (B, width) int32."""
        import numpy as np  # only packed batches need it

        at = np.zeros((len(self.lengths), self.width), dtype=np.int32)
        for row, start, n in self._sequences:
            at[row, start : start + n] = np.arange(n)
        return mx.array(at)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Groups of sequences of similar lengths, as (number of sequences, length of the longest)."""
        return self._layout.groups

    def apart(self, x: mx.array) -> list[mx.array]:
        """The sequences of each group, zeros on their right: (B, width, D) -> (G, longest, D) for each."""
        layout, dim = self._layout, x.shape[-1]
        flat = _moved(x.reshape(-1, dim), layout.slots, layout.tokens)
        ends = [0]
        for count, longest in layout.groups:
            ends.append(ends[-1] + count * longest)
        parts = mx.split(flat, ends[1:-1], axis=0)
        return [part.reshape(*group, dim) for part, group in zip(parts, layout.groups, strict=True)]

    def joined(self, parts: Sequence[mx.array]) -> mx.array:
        """The inverse of `apart`, with zeros for padding: (G, longest, D) for each group -> (B, width, D)."""
        layout, dim = self._layout, parts[0].shape[-1]
        flat = mx.concatenate([part.reshape(-1, dim) for part in parts], axis=0)
        return _moved(flat, layout.tokens, layout.slots).reshape(len(self.lengths), self.width, dim)

    @cached_property
    def _sequences(self) -> list[tuple[int, int, int]]:
        """Row, first slot and length of each sequence."""
        found: list[tuple[int, int, int]] = []
        for row, lengths in enumerate(self.lengths):
            start = 0
            for n in lengths:
                found.append((row, start, n))
                start += n
            assert start <= self.width, "the sequences of a row fit in it"
        return found

    @cached_property
    def _layout(self) -> _Layout:
        import numpy as np

        slots: list[Any] = []
        groups: list[tuple[int, int]] = []
        tokens = np.full(len(self.lengths) * self.width, _NONE, dtype=np.int32)
        used = 0
        for row, start, n in sorted(self._sequences, key=lambda each: -each[2]):
            count, longest = groups.pop() if groups else (0, n)
            if longest - n > max(_PADDED_TOKENS, longest // _PADDED_PART):
                groups.append((count, longest))
                count, longest = 0, n
            groups.append((count + 1, longest))
            first = row * self.width + start
            own = np.full(longest, _NONE, dtype=np.int32)
            own[:n] = np.arange(first, first + n)
            tokens[first : first + n] = np.arange(used, used + n)
            slots.append(own)
            used += longest
        return _Layout(groups, mx.array(np.concatenate(slots)), mx.array(tokens))


@dataclass(frozen=True)
class _Layout:
    """Groups, the token in each of their slots, and the slot of each token; both -1 for none."""

    groups: list[tuple[int, int]]
    slots: mx.array
    tokens: mx.array


def _moved(x: mx.array, to: mx.array, back: mx.array) -> mx.array:
    """Rows x[to], zeros where `to` is -1; `back` has the place of each row of x in the result."""

    def run(x: mx.array) -> mx.array:
        return _rows(x, to)

    def gradient(primals: Any, cotangent: mx.array, output: mx.array) -> mx.array:
        return _rows(cotangent, back)

    function: Any = mx.custom_function(run)
    function.vjp(gradient)
    return function(x)


def _rows(x: mx.array, at: mx.array) -> mx.array:
    return mx.where(at[:, None] >= 0, mx.take(x, mx.maximum(at, 0), axis=0), mx.zeros((), dtype=x.dtype))

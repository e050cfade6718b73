"""Keys and values already computed, as arguments of a forward pass.

A `LayerCache` is a mask (how far back queries look, so what may be forgotten) and a codec (how rows are
stored). Rows stay in order of time: a window is a slice of the buffer, not a ring, so every view that
attention gets is contiguous and its mask needs no index arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from macllm.errors import DoesNotFitError, MacllmError, UsageError
from macllm.ops.head_params import Packing
from macllm.ops.kv import KV, Dense, Quantized, quantize

from .mask import first_visible
from .position import Span
from .spec import Causal, MaskSpec

GROW = 256  # slots by which a buffer grows
SLACK = 64  # slots that a window keeps beyond what it needs, so that a few tokens can be taken back

Parts = tuple[mx.array, ...]


@dataclass(frozen=True)
class DenseCodec:
    """Rows as they are."""

    def encode(self, rows: mx.array) -> Parts:
        """(B, K, L, Dh) -> what is stored."""
        return (rows,)

    def view(self, keys: Parts, values: Parts, head_dim: int) -> KV:
        """What attention reads."""
        return Dense(keys[0], values[0])

    def packing(self, head_dim: int) -> Packing | None:
        """None: rows are not packed."""
        return None


@dataclass(frozen=True)
class QuantizedCodec:
    """Rows in 4 or 8 bits, in groups along the head; a head is padded to whole groups."""

    bits: int

    def encode(self, rows: mx.array) -> Parts:
        """(B, K, L, Dh) -> packed, scales, biases."""
        return quantize(rows, self.bits, self.group_size(rows.shape[-1]))

    def view(self, keys: Parts, values: Parts, head_dim: int) -> KV:
        """What attention reads."""
        return Quantized(keys, values, self.bits, self.group_size(head_dim), head_dim)

    def packing(self, head_dim: int) -> Packing:
        """Bits and group of heads of `head_dim`."""
        return Packing(self.bits, self.group_size(head_dim))

    def group_size(self, head_dim: int) -> int:
        """64 where a head has whole groups of it, else 32."""
        return 64 if head_dim % 64 == 0 else 32


Codec = DenseCodec | QuantizedCodec


class LayerCache:
    """One layer's keys and values: `offset` slots seen, those from `start` on still held."""

    def __init__(self, mask: MaskSpec, codec: Codec, left_padding: tuple[int, ...] | None = None):
        self.mask, self.codec, self.left_padding = mask, codec, left_padding
        self.offset = 0
        self.start = 0
        self.head_dim = 0
        self._parts: Parts = ()  # keys' then values', each (B, K, capacity, ...)
        self._lent = False  # whether others may hold them, or views of them
        self._written: mx.array | None = None  # what an op that writes into them gives, until they are read

    @property
    def parts(self) -> Parts:
        """Keys' then values' arrays, each (B, K, capacity, ...), of which the first slots are filled."""
        if self._written is not None:
            self._parts, self._written = tuple(mx.depends(list(self._parts), [self._written])), None
        self._lent = True
        return self._parts

    def __getstate__(self) -> dict[str, object]:
        self._lent = True  # a copy holds the same arrays
        return self.__dict__.copy()

    def packing(self, head_dim: int) -> Packing | None:
        """The form in which `store` takes heads of `head_dim`; None for rows in floating point."""
        return self.codec.packing(head_dim)

    def append(self, keys: mx.array, values: mx.array) -> tuple[KV, int]:
        """Store (B, K, L, Dh) twice; returns what the L new queries may look at, and the slot it begins with."""
        return self.store((*self.codec.encode(keys), *self.codec.encode(values)), keys.shape[-1])

    def store(self, rows: Parts, head_dim: int) -> tuple[KV, int]:
        """The same for keys and values as the codec encodes heads of `head_dim`."""
        length = rows[0].shape[2]
        self.head_dim = head_dim
        needed = self._needed(self.offset)
        self._make_room(needed, length, rows)
        at = self.offset - self.start
        for part, new in zip(self.parts, rows, strict=True):
            part[:, :, at : at + length] = new
        self.offset += length
        return self._view(needed), needed

    def reserve(self) -> tuple[Parts, int, mx.array | None]:
        """Arrays of keys then values, the index there of the next slot, and what has to be computed before.

        For an op that writes a row into the arrays themselves, after which `commit` is called. The cache holds slots.
        """
        self._make_room(self._needed(self.offset), 1, self._parts)
        if self._lent:
            self._move(self._parts[0].shape[2], self.start, self._parts)
        return self._parts, self.offset - self.start, self._written

    def commit(self, written: mx.array) -> None:
        """The reserved slot is filled as soon as `written` is computed."""
        self._written = written
        self.offset += 1

    def trim(self, n: int) -> None:
        """Forget the newest `n` slots."""
        self.offset -= n

    @property
    def trimmable(self) -> int:
        """How many of the newest slots can be forgotten and still leave all that the next query needs."""
        if self.start == 0:
            return self.offset
        n = 0
        while n < self.offset and self._needed(self.offset - n - 1) >= self.start:
            n += 1
        return n

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return sum(part.nbytes for part in self._parts)

    def held(self) -> Parts:
        """The slots still held, without spare room."""
        return tuple(part[:, :, : self.offset - self.start] for part in self.parts)

    def restore(self, parts: Parts, offset: int, head_dim: int) -> None:
        """Become the cache that `held()` these parts at `offset`."""
        self._parts, self._lent, self._written = parts, True, None
        self.offset, self.head_dim = offset, head_dim
        self.start = offset - (parts[0].shape[2] if parts else 0)

    def _needed(self, offset: int) -> int:
        return 0 if isinstance(self.mask, Causal) else first_visible(self.mask, Span(offset, 1, self.left_padding))

    def _view(self, first: int) -> KV:
        half = len(self.parts) // 2
        rows = tuple(part[:, :, first - self.start : self.offset - self.start] for part in self.parts)
        return self.codec.view(rows[:half], rows[half:], self.head_dim)

    def _make_room(self, needed: int, length: int, like: Parts) -> None:
        """Capacity for `length` more slots, moving to a new buffer when the old one is full or far too large."""
        keep = max(self.start, needed - SLACK) if needed > 0 else self.start
        size = self.offset - keep + length
        capacity = self._parts[0].shape[2] if self._parts else 0
        fits = self.offset - self.start + length <= capacity
        if fits and capacity <= 2 * (size + GROW):
            return
        self._move(-(-(size + (GROW if self._parts else 0)) // GROW) * GROW, keep, like)

    def _move(self, room: int, keep: int, like: Parts) -> None:
        """To new arrays with `room` slots, of which there are more than are filled, for those from `keep` on."""
        held = self.held()
        moved = []
        for n, part in enumerate(like):
            shape = (*part.shape[:2], room, part.shape[3])
            fresh = mx.zeros(shape, dtype=part.dtype)
            if held:
                fresh[:, :, : self.offset - keep] = held[n][:, :, keep - self.start :]
            moved.append(fresh)
        self._parts, self._lent, self.start = tuple(moved), False, keep


@dataclass
class Cache:
    """All that a model remembers of a batch of sequences. Made by `model.make_cache`; a forward pass advances it."""

    layers: list[LayerCache]
    left_padding: tuple[int, ...] | None = None
    max_context: int | None = None
    kv_bits: int | None = None
    cross: list[Dense] = field(default_factory=list)  # keys and values of an encoder's output, one a layer
    source_lengths: mx.array | None = None

    @property
    def offset(self) -> int:
        """Slots filled, padding included."""
        return self.layers[0].offset

    @property
    def trimmable(self) -> int:
        """How many of the newest slots `trim` can take back."""
        return min(layer.trimmable for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes reserved in all layers."""
        return sum(layer.nbytes for layer in self.layers) + sum(kv.keys.nbytes + kv.values.nbytes for kv in self.cross)

    @property
    def state(self) -> list[mx.array]:
        """The arrays to evaluate so that nothing of this cache is pending."""
        arrays = [part for layer in self.layers for part in layer.parts]
        return arrays + [array for kv in self.cross for array in (kv.keys, kv.values)]

    def trim(self, n: int) -> None:
        """Forget the newest `n` slots. Raises MacllmError when a window has let go of what would be needed then."""
        if not 0 <= n <= self.offset:
            raise UsageError(f"cannot take back {n} of {self.offset} tokens")
        if n > self.trimmable:
            raise MacllmError(
                f"cannot take back {n} tokens from this cache, only {self.trimmable}",
                cause="a layer has already let go of the tokens before it",
                remedy="compute the sequence again with a new cache",
            )
        for layer in self.layers:
            layer.trim(n)

    def span(self, length: int) -> Span:
        """The slots that `length` new tokens fill. Raises DoesNotFitError past `max_context`."""
        if self.max_context is not None and self.offset + length > self.max_context:
            raise DoesNotFitError(
                f"{self.offset + length} tokens do not fit into the {self.max_context} this cache was made for",
                remedy="a larger max_context, or a shorter input",
            )
        return Span(self.offset, length, self.left_padding, self.max_context)


def make_layers(
    masks: Sequence[MaskSpec], kv_bits: int | None, left_padding: tuple[int, ...] | None
) -> list[LayerCache]:
    """An empty cache for each layer's mask. Raises UsageError for bits that no codec has."""
    if kv_bits not in (None, 4, 8):
        raise UsageError(f"kv_bits is {kv_bits}; it can be 4, 8 or None (not quantized)")
    codec: Codec = DenseCodec() if kv_bits is None else QuantizedCodec(kv_bits)
    return [LayerCache(mask, codec, left_padding) for mask in masks]

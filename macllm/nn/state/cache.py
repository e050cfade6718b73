"""A model's state over a batch of sequences, as an argument of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import mlx.core as mx

from macllm.errors import DoesNotFitError, MacllmError, UsageError
from macllm.ops.kv import Dense

from ..position import Span
from ..spec import AttentionSpec, Bidirectional, Local, PerformerSpec, StackSpec
from .buffer import Arrays
from .feature_sums import FeatureSums
from .key_values import Codec, DenseCodec, KeyValues, QuantizedCodec
from .layer import LayerState


@dataclass
class Cache:
    """The states of all layers after `length` slots, padding included. Made by `model.make_cache`."""

    layers: list[LayerState]
    left_padding: tuple[int, ...] | None = None
    max_context: int | None = None
    kv_bits: int | None = None
    cross: list[Dense] = field(default_factory=list)  # keys and values of an encoder's output, one a layer
    source_lengths: mx.array | None = None
    length: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes reserved in all layers."""
        return sum(layer.nbytes for layer in self.layers) + sum(kv.keys.nbytes + kv.values.nbytes for kv in self.cross)

    @property
    def state(self) -> list[mx.array]:
        """The arrays to evaluate so that nothing of this cache is pending."""
        arrays = [array for layer in self.layers for array in layer.arrays()]
        return arrays + [array for kv in self.cross for array in (kv.keys, kv.values)]

    def span(self, count: int) -> Span:
        """The slots that `count` new tokens fill. Raises DoesNotFitError past `max_context`."""
        if self.max_context is not None and self.length + count > self.max_context:
            raise DoesNotFitError(
                f"{self.length + count} tokens do not fit into the {self.max_context} this cache was made for",
                remedy="raise max_context, or shorten the input",
            )
        return Span(self.length, count, self.left_padding, self.max_context)

    def advance(self, count: int) -> None:
        """Count `count` more slots as filled, once every layer has filled them."""
        self.length += count

    def nearest(self, length: int) -> int:
        """The longest length, at most `length`, that every layer can go back to; 0 is an empty cache."""
        length = min(length, self.length)
        while (nearest := min((layer.nearest(length) for layer in self.layers), default=length)) < length:
            length = nearest
        return length

    def cut(self, length: int) -> None:
        """Go back to the first `length` slots. Raises MacllmError for a length that `nearest` does not give."""
        if not 0 <= length <= self.length:
            raise UsageError(f"cannot go back to {length} of {self.length} tokens")
        if self.nearest(length) < length:
            raise MacllmError(
                f"cannot go back to {length} of this cache's {self.length} tokens, only to {self.nearest(length)}",
                cause="a layer with a window has dropped keys that the next token would see",
                remedy="compute the sequence again with a new cache",
            )
        for layer in self.layers:
            layer.cut(length)
        self.length = length

    def restore(self, rows: Sequence[Arrays], length: int, head_dims: Sequence[int]) -> None:
        """Become the cache whose layers `filled()` these rows after `length` slots."""
        for layer, each, head_dim in zip(self.layers, rows, head_dims, strict=True):
            layer.restore(each, length, head_dim)
        self.length = length

    def select(self, rows: Sequence[int], *, same_source: bool = False) -> None:
        """Hold the sequences `rows` of the batch, in this order; one may come several times.

        With `same_source`, all come from one source, whose keys and values stay as they are.
        """
        chosen = mx.array(list(rows), dtype=mx.int32)
        if self.left_padding is not None:
            self.left_padding = _padding([self.left_padding[row] for row in rows])
        for layer in self.layers:
            layer.select(chosen, self.left_padding)
        if not same_source:
            self.cross = [
                Dense(*(mx.take(array, chosen, axis=0) for array in (kv.keys, kv.values))) for kv in self.cross
            ]
            if self.source_lengths is not None:
                self.source_lengths = self.source_lengths[chosen]

    def fork(self) -> Self:
        """An independent copy; arrays are shared until one of the two writes."""
        return replace(self, layers=[layer.fork() for layer in self.layers], cross=list(self.cross))


def make_cache(
    stack: StackSpec, max_context: int | None, kv_bits: int | None, left_padding: Sequence[int] | None
) -> Cache:
    """An empty cache for a stack. Raises UsageError for unsupported bits and for a bidirectional stack."""
    if kv_bits not in (None, 4, 8):
        raise UsageError(f"kv_bits is {kv_bits}; it must be 4, 8 or None (not quantized)")
    if any(isinstance(layer.mixer.mask, Bidirectional | Local) for layer in stack.layers):
        raise UsageError("a bidirectional model cannot use a cache", remedy="call it without a cache")
    padding = _padding(left_padding)
    codec: Codec = DenseCodec() if kv_bits is None else QuantizedCodec(kv_bits)
    layers = [_empty(layer.mixer, codec, padding) for layer in stack.layers]
    return Cache(layers, padding, max_context, kv_bits)


def _padding(counts: Sequence[int] | None) -> tuple[int, ...] | None:
    return tuple(counts) if counts is not None and any(counts) else None


def _empty(spec: AttentionSpec, codec: Codec, left_padding: tuple[int, ...] | None) -> LayerState:
    return FeatureSums() if isinstance(spec, PerformerSpec) else KeyValues(spec.mask, codec, left_padding)

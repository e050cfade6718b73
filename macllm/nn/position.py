"""Absolute, rotary and relative positions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import DoesNotFitError
from macllm.ops.rope import rope

from .segments import Segments
from .spec import (
    BandScaling,
    DynamicScaling,
    LearnedPositions,
    LinearBiasSpec,
    LinearScaling,
    LongScaling,
    RelativeBiasSpec,
    RoPESpec,
    SinusoidalPositions,
    YarnScaling,
)


@dataclass(frozen=True)
class Span:
    """The slots that a call fills: `length` of them after `offset`.

    A row padded on the left by n has its tokens n slots later, so a position is slot - n. `planned` is the length
    that the whole sequence will reach, for rotations that depend on it. `segments` are sequences one after another in
    the rows, each with its own positions.
    """

    offset: int
    length: int
    left_padding: tuple[int, ...] | None = None
    planned: int | None = None
    segments: Segments | None = None

    @property
    def end(self) -> int:
        """One past the last slot filled."""
        return self.offset + self.length

    @property
    def sequence_length(self) -> int:
        """The sequence length for length-dependent rotations."""
        shift = min(self.left_padding) if self.left_padding else 0
        return max(self.end - shift, self.planned or 0)

    def first_position(self) -> int | mx.array:
        """Position of the first new token: an int for all rows, or (B,). Negative in padding."""
        return self.offset if self.left_padding is None else self.offset - mx.array(self.left_padding)

    def positions(self) -> mx.array:
        """Position of every new token, 0 in padding: (L,) or (B, L)."""
        if self.segments is not None:
            return self.segments.positions
        slots = mx.arange(self.offset, self.end)
        if self.left_padding is None:
            return slots
        return mx.maximum(slots - mx.array(self.left_padding)[:, None], 0)


class RoPE:
    """Rotary positions (arXiv:2104.09864) with all scaling methods. Not a module: tables are no weights."""

    def __init__(self, spec: RoPESpec):
        self.spec = spec
        self._table: tuple[int, mx.array, float] | None = None  # length class, then the result of `table`

    def __call__(self, x: mx.array, span: Span) -> mx.array:
        """Rotate (B, H, L, Dh) to the positions of `span`."""
        s = self.spec
        wavelengths, magnitude = self.table(span)
        if magnitude != 1.0:
            x = mx.concatenate([x[..., : s.dims] * magnitude, x[..., s.dims :]], axis=-1)
        return rope(x, wavelengths, span.first_position(), interleaved=s.interleaved)

    def table(self, span: Span) -> tuple[mx.array, float]:
        """Wavelengths (dims / 2,) for the sequence length of `span`, and the scale of the rotated dims."""
        kind = self.spec.length_class(span.sequence_length)
        made = self._table
        if made is None or made[0] != kind:
            wavelengths, magnitude = rotation(self.spec, kind)
            made = self._table = kind, mx.array(wavelengths), magnitude
        return made[1:]


@lru_cache(maxsize=256)
def rotation(spec: RoPESpec, length: int) -> tuple[tuple[float, ...], float]:
    """Wavelengths (dims / 2 of them, positions per radian), and the scale of the rotated dims."""
    exponents = [i / spec.dims for i in range(0, spec.dims, 2)]
    plain = [spec.base**exponent for exponent in exponents]
    match spec.scaling:
        case None:
            return tuple(plain), 1.0
        case LinearScaling(factor):
            return tuple(wave * factor for wave in plain), 1.0
        case DynamicScaling(factor, trained):
            stretch = factor * max(length, trained) / trained - (factor - 1)
            base = spec.base * stretch ** (spec.dims / (spec.dims - 2))
            return tuple(base**exponent for exponent in exponents), 1.0
        case BandScaling() as band:
            return tuple(_banded(wave, band) for wave in plain), 1.0
        case YarnScaling() as yarn:
            return tuple(_yarn(plain, spec, yarn)), yarn.magnitude
        case LongScaling() as long:
            factors = long.long if length > long.trained else long.short
            return tuple(wave * factor for wave, factor in zip(plain, factors, strict=True)), long.magnitude
    raise TypeError(spec.scaling)


def _banded(wavelength: float, s: BandScaling) -> float:
    turns = s.trained / (2 * math.pi * wavelength)
    # Equal bounds leave no band to blend.
    keep = _share((turns - s.low) / (s.high - s.low)) if s.high > s.low else float(turns >= s.low)
    return wavelength / ((1 - keep) / s.factor + keep)


def _yarn(wavelengths: list[float], spec: RoPESpec, s: YarnScaling) -> Iterator[float]:
    """YaRN (arXiv:2309.00071, 3.2): dims above `beta_fast` turns are kept, below `beta_slow` stretched."""

    def dim_turning(turns: float) -> float:
        return spec.dims * math.log(s.trained / (turns * 2 * math.pi)) / (2 * math.log(spec.base))

    low, high = dim_turning(s.beta_fast), dim_turning(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dims - 1)
    for i, wavelength in enumerate(wavelengths):
        stretch = _share((i - low) / (high - low if high != low else 0.001))
        yield wavelength / (stretch / s.factor + (1 - stretch))


def _share(x: float) -> float:
    return min(max(x, 0.0), 1.0)


class Learned(nn.Module):
    """A table of positions, added to the embeddings."""

    def __init__(self, dim: int, spec: LearnedPositions):
        super().__init__()
        self.count, self.offset = spec.count, spec.offset
        self.table = nn.Embedding(spec.count + spec.offset, dim)

    def __call__(self, span: Span) -> mx.array:
        """(L, D), or (B, L, D) where rows are padded or packed."""
        _check_count(span, self.count)
        return self.table(span.positions() + self.offset)


class Sinusoidal:
    """Sines and cosines of position / 10000^(2i/D) (arXiv:1706.03762, 3.5). Holds no weights."""

    def __init__(self, dim: int, spec: SinusoidalPositions):
        self.spec = spec
        self.table = sinusoids(dim, spec)

    def __call__(self, span: Span) -> mx.array:
        """(L, D), or (B, L, D) where rows are padded or packed."""
        _check_count(span, self.spec.count)
        return mx.array(self.table)[span.positions()]


def sinusoids(dim: int, spec: SinusoidalPositions) -> Any:
    """The table of sines and cosines as a numpy array, float32 (count, D)."""
    import numpy as np  # for float64, which MLX lacks on a GPU; imported here, as other models do not need it

    angle = np.arange(spec.count)[:, None] / 10_000 ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    pair = (np.sin(angle), np.cos(angle)[:, : dim // 2])
    joined = np.stack(pair, axis=-1).reshape(spec.count, dim) if spec.interleaved else np.concatenate(pair, axis=-1)
    return joined.astype(np.float32)


def make_positions(dim: int, spec: LearnedPositions | SinusoidalPositions) -> Learned | Sinusoidal:
    """The absolute positions of a spec."""
    match spec:
        case LearnedPositions():
            return Learned(dim, spec)
        case SinusoidalPositions():
            return Sinusoidal(dim, spec)
    raise TypeError(spec)


def _check_count(span: Span, count: int) -> None:
    shift = min(span.left_padding) if span.left_padding else 0
    longest = span.end - shift if span.segments is None else span.segments.longest
    if longest > count:
        raise DoesNotFitError(
            f"{longest} tokens are more than the {count} positions this model has",
            cause="the model's table of positions has no more rows",
            remedy=f"shorten the input to {count} tokens",
        )


class RelativeBias(nn.Module):
    """A learned bias per head and bucket of distance, shared by all layers (arXiv:1910.10683, 2.1)."""

    def __init__(self, spec: RelativeBiasSpec):
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.num_buckets, spec.num_heads)

    def __call__(self, query: mx.array, key: mx.array) -> mx.array:
        """Slots (L,), (S,) -> (1, H, L, S), to be added to the scores."""
        distance = key[None, :] - query[:, None]  # (L, S)
        return self.embedding(self._bucket(distance)).transpose(2, 0, 1)[None]

    def _bucket(self, distance: mx.array) -> mx.array:
        s, buckets, start = self.spec, self.spec.num_buckets, mx.zeros_like(distance)
        if s.bidirectional:
            buckets //= 2
            start = (distance > 0).astype(distance.dtype) * buckets
            distance = mx.abs(distance)
        else:
            distance = -mx.minimum(distance, 0)
        exact = buckets // 2
        ratio = mx.log(mx.maximum(distance, 1).astype(mx.float32) / exact) / math.log(s.max_distance / exact)
        far = exact + (ratio * (buckets - exact)).astype(distance.dtype)
        return start + mx.where(distance < exact, distance, mx.minimum(far, buckets - 1))


class LinearBias(nn.Module):
    """ALiBi (arXiv:2108.12409): -slope * distance, shared by all layers. Holds no weights."""

    def __init__(self, spec: LinearBiasSpec):
        super().__init__()
        self.slopes = slopes(spec.num_heads)

    def __call__(self, query: mx.array, key: mx.array) -> mx.array:
        """Slots (L,), (S,) -> (1, H, L, S), to be added to the scores of keys up to the query's own."""
        distance = (query[:, None] - key[None, :]).astype(mx.float32)  # (L, S)
        return -mx.array(self.slopes)[None, :, None, None] * distance


def slopes(heads: int) -> tuple[float, ...]:
    """The slope of each head: from 2^(-8 / heads) to 2^-8 (arXiv:2108.12409, 3).

    A number of heads between two powers of two has those of the smaller, then every other one of the larger.
    """

    def of_power(count: int) -> list[float]:
        return [2 ** (-8 * (head + 1) / count) for head in range(count)]

    smaller = 2 ** int(math.log2(heads))
    return tuple([*of_power(smaller), *of_power(2 * smaller)[::2]][:heads])


def make_bias(spec: RelativeBiasSpec | LinearBiasSpec) -> RelativeBias | LinearBias:
    """The bias on the scores of a spec."""
    return RelativeBias(spec) if isinstance(spec, RelativeBiasSpec) else LinearBias(spec)

"""Typed keys and values, dense or quantized, that a cache hands to attention."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from .dispatch import native


@dataclass(frozen=True)
class Dense:
    """Keys and values in floating point: (B, K, S, Dh) twice."""

    keys: mx.array
    values: mx.array


@dataclass(frozen=True)
class Quantized:
    """Keys and values packed by `mx.quantize`: (packed, scales, biases) each, in groups along the head.

    `head_dim` is the head's size before it was padded to whole groups.
    """

    keys: tuple[mx.array, ...]
    values: tuple[mx.array, ...]
    bits: int
    group_size: int
    head_dim: int

    def dense(self, dtype: mx.Dtype) -> Dense:
        """The dequantized keys and values, in `dtype`."""
        return Dense(self._unpack(self.keys, dtype), self._unpack(self.values, dtype))

    def _unpack(self, packed: tuple[mx.array, ...], dtype: mx.Dtype) -> mx.array:
        whole = mx.dequantize(*packed, group_size=self.group_size, bits=self.bits)
        return whole[..., : self.head_dim].astype(dtype)


def quantize(rows: mx.array, bits: int, group_size: int) -> tuple[mx.array, ...]:
    """(B, K, L, Dh) -> packed, scales, biases; heads are zero-padded to whole groups."""
    kernels = native(rows)
    packed = None if kernels is None else kernels.pack(rows, bits, group_size)
    if packed is not None:
        return tuple(packed)
    short = -rows.shape[-1] % group_size
    padded = mx.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, short)]) if short else rows
    return tuple(mx.quantize(padded, group_size=group_size, bits=bits))


KV = Dense | Quantized

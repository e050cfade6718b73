"""Typed weights that modules pass to ops: of linear layers, of stacked experts, and of norms."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class DenseWeight(NamedTuple):
    """(F, D) in float32, float16 or bfloat16, or a stack (E, F, D), and a bias (F,)."""

    weight: mx.array
    bias: mx.array | None = None


class PackedWeight(NamedTuple):
    """A matrix (F, D), or a stack (E, F, D), as `mx.quantize` packs it, and a bias (F,)."""

    words: mx.array
    scales: mx.array
    biases: mx.array | None
    group_size: int | None
    bits: int | None
    mode: str = "affine"
    bias: mx.array | None = None

    def dequantized(self) -> mx.array:
        """The matrix in floating point: (F, D) or (E, F, D)."""
        return mx.dequantize(
            self.words, self.scales, self.biases, group_size=self.group_size, bits=self.bits, mode=self.mode
        )


class AdaptedWeight(NamedTuple):
    """`base` plus scale * A B, with A (D, r), B (r, F) and the adapter's `dropout` (arXiv:2106.09685).

    For a stack of experts A is (E, D, r), B (E, r, F). A `gain` (F,) multiplies the rows of the sum, not its bias:
    DoRA's magnitudes over the rows' norms (arXiv:2402.09353).
    """

    base: DenseWeight | PackedWeight
    a: mx.array
    b: mx.array
    scale: float
    dropout: float = 0.0
    gain: mx.array | None = None


Weight = DenseWeight | PackedWeight | AdaptedWeight


class ExpertWeights(NamedTuple):
    """Stacks of gated feed-forward layers: (E, F, D), (E, F, D) and (E, D, F)."""

    gate: Weight
    up: Weight
    down: Weight
    activation: str


class RMSNormWeight(NamedTuple):
    """x / rms(x) * (shift + weight), without a weight x / rms(x)."""

    weight: mx.array | None
    eps: float
    shift: float = 0.0


class LayerNormWeight(NamedTuple):
    """(x - mean) / std * weight + bias."""

    weight: mx.array | None
    bias: mx.array | None
    eps: float


NormWeight = RMSNormWeight | LayerNormWeight | None
"""None stands for the identity."""

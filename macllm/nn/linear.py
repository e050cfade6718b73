"""Linear and embedding layers that may hold 16-bit weights beside float32 activations."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.linear import dense_linear, linear, rows
from macllm.ops.weights import DenseWeight, PackedWeight


def dense_weight(layer: nn.Linear) -> DenseWeight:
    """The typed weight of a dense linear layer."""
    return DenseWeight(layer["weight"], layer.get("bias"))


def packed_weight(layer: Any) -> PackedWeight:
    """The typed weight of a linear, embedding or expert layer that `mx.quantize` packed."""
    words, scales, biases, bias = layer["weight"], layer["scales"], layer.get("biases"), layer.get("bias")
    return PackedWeight(words, scales, biases, layer.group_size, layer.bits, layer.mode, bias)


class Linear(nn.Linear):
    """x W^T + b."""

    @property
    def weights(self) -> DenseWeight:
        """The weight as ops take it."""
        return dense_weight(self)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., F)."""
        return linear(x, self.weights)


class Embedding(nn.Embedding):
    """Token embedding; `as_linear` is the tied output head."""

    def __call__(self, tokens: mx.array) -> mx.array:
        """int (...) -> (..., D)."""
        return rows(self.weight, tokens)

    def as_linear(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., V)."""
        return dense_linear(x, self.weight)

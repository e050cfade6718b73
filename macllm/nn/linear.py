"""Linear layers and token tables that may hold 16-bit weights beside float32 activations."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.linear import linear, rows


class Linear(nn.Linear):
    """x W^T + b."""

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., F)."""
        return linear(x, self.weight, self.get("bias"))


class Table(nn.Embedding):
    """A vector for each token, and read backwards a head."""

    def __call__(self, tokens: mx.array) -> mx.array:
        """int (...) -> (..., D)."""
        return rows(self.weight, tokens)

    def as_linear(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., V)."""
        return linear(x, self.weight)

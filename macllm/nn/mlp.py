"""The dense feed-forward layer."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.gate import activate
from macllm.ops.linear import gated_linear, linear
from macllm.ops.weights import NormWeight

from .linear import Linear
from .spec import MLPSpec


class MLP(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated (arXiv:2002.05202)."""

    LINEARS = ("up_proj", "down_proj", "gate_proj")

    def __init__(self, dim: int, spec: MLPSpec):
        super().__init__()
        self.activation, self.is_gated = spec.activation, spec.gated
        if spec.gated:
            self.gate_proj = Linear(dim, spec.hidden, bias=spec.bias)
        self.up_proj = Linear(dim, spec.hidden, bias=spec.bias)
        self.down_proj = Linear(spec.hidden, dim, bias=spec.bias)

    def __call__(self, x: mx.array, *, norm: NormWeight = None, residual: mx.array | None = None) -> mx.array:
        """residual + mlp(norm(x)): (..., D) -> (..., D)."""
        if self.is_gated:
            h = gated_linear(x, self.gate_proj.weights, self.up_proj.weights, self.activation, norm=norm)  # (..., F)
        else:
            h = activate(linear(x, self.up_proj.weights, norm=norm), self.activation)  # (..., F)
        return linear(h, self.down_proj.weights, residual=residual)

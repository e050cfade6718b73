"""The dense feed-forward layer."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.gate import activate, gated

from .linear import Linear
from .spec import MLPSpec


class MLP(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated (arXiv:2002.05202)."""

    def __init__(self, dim: int, spec: MLPSpec):
        super().__init__()
        self.activation, self.is_gated = spec.activation, spec.gated
        if spec.gated:
            self.gate_proj = Linear(dim, spec.hidden, bias=spec.bias)
        self.up_proj = Linear(dim, spec.hidden, bias=spec.bias)
        self.down_proj = Linear(spec.hidden, dim, bias=spec.bias)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., D)."""
        if self.is_gated:
            return self.down_proj(gated(self.gate_proj(x), self.up_proj(x), self.activation))
        return self.down_proj(activate(self.up_proj(x), self.activation))

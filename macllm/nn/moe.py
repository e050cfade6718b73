"""Mixtures of experts (Shazeer et al. 2017, arXiv:1701.06538; arXiv:2401.04088)."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.experts import gather_matmul, route
from macllm.ops.gate import gated
from macllm.ops.quantized import Packed, quantized_gather_matmul

from .linear import Linear
from .mlp import MLP
from .spec import MLPSpec, MoESpec


class ExpertLinear(nn.Module):
    """One linear layer for each expert, weights stacked (E, F, D)."""

    def __init__(self, num_experts: int, input_dims: int, output_dims: int):
        super().__init__()
        bound = 1 / math.sqrt(input_dims)
        self.weight = mx.random.uniform(-bound, bound, (num_experts, output_dims, input_dims))

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """(..., 1, D), int (..., T) -> (..., T, 1, F)."""
        return gather_matmul(x, self.weight, chosen)

    def to_quantized(
        self, group_size: int | None = None, bits: int | None = None, mode: str = "affine", **_: object
    ) -> QuantizedExpertLinear:
        """The same layer with its weights packed by `mx.quantize`."""
        return QuantizedExpertLinear(
            mx.quantize(self.weight, group_size=group_size, bits=bits, mode=mode), group_size, bits, mode
        )


class QuantizedExpertLinear(nn.Module):
    """An `ExpertLinear` whose weights `mx.quantize` packed."""

    def __init__(self, packed, group_size: int | None, bits: int | None, mode: str):
        super().__init__()
        self.group_size, self.bits, self.mode = group_size, bits, mode
        self.weight, self.scales, *biases = packed
        if biases:
            self.biases = biases[0]
        self.freeze()

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """(..., 1, D), int (..., T) -> (..., T, 1, F)."""
        packed = Packed(self.weight, self.scales, self.get("biases"), self.group_size, self.bits, self.mode)
        return quantized_gather_matmul(x, packed, chosen)


class Experts(nn.Module):
    """Gated MLPs side by side; each token runs those chosen for it."""

    def __init__(self, dim: int, spec: MLPSpec, num_experts: int):
        super().__init__()
        self.activation = spec.activation
        self.gate_proj = ExpertLinear(num_experts, dim, spec.hidden)
        self.up_proj = ExpertLinear(num_experts, dim, spec.hidden)
        self.down_proj = ExpertLinear(num_experts, spec.hidden, dim)

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """(..., 1 or T, 1, D), int (..., T) -> (..., T, D)."""
        y = gated(self.gate_proj(x, chosen), self.up_proj(x, chosen), self.activation)
        return self.down_proj(y, chosen).squeeze(-2)


class MoE(nn.Module):
    """A router and its experts, with an optional expert that every token visits."""

    def __init__(self, dim: int, spec: MoESpec):
        super().__init__()
        self.spec = spec
        self.router = Linear(dim, spec.num_experts, bias=False)
        self.experts = Experts(dim, spec.expert, spec.num_experts)
        if spec.shared is not None:
            self.shared = MLP(dim, spec.shared)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, L, D) -> (B, L, D)."""
        s = self.spec
        chosen, weights = route(self.router(x), s.top_k, s.router, renormalize=s.renormalize)
        weights = weights.astype(x.dtype)[..., None]
        each = x[..., None, None, :]
        if s.weigh == "input":
            y = self.experts(each * weights[..., None], chosen).sum(-2)
        else:
            y = (self.experts(each, chosen) * weights).sum(-2)
        return y if s.shared is None else y + self.shared(x)


def make_feed_forward(dim: int, spec: MLPSpec | MoESpec) -> nn.Module:
    """The feed-forward layer a spec asks for."""
    match spec:
        case MLPSpec():
            return MLP(dim, spec)
        case MoESpec():
            return MoE(dim, spec)
    raise TypeError(spec)

"""Mixtures of experts (Shazeer et al. 2017, arXiv:1701.06538; arXiv:2401.04088)."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.experts import expert_outputs, experts, route
from macllm.ops.linear import linear
from macllm.ops.norm import normalize
from macllm.ops.weights import DenseWeight, ExpertWeights, NormWeight, PackedWeight

from .linear import Linear, packed_weight
from .mlp import MLP
from .routing import record
from .spec import MLPSpec, MoESpec


class ExpertLinear(nn.Module):
    """One linear layer for each expert, weights stacked (E, F, D)."""

    def __init__(self, num_experts: int, input_dims: int, output_dims: int):
        super().__init__()
        bound = 1 / math.sqrt(input_dims)
        self.weight = mx.random.uniform(-bound, bound, (num_experts, output_dims, input_dims))

    @property
    def weights(self) -> DenseWeight:
        """The weight as ops take it."""
        return DenseWeight(self["weight"])

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

    @property
    def weights(self) -> PackedWeight:
        """The weight as ops take it."""
        return packed_weight(self)


class Experts(nn.Module):
    """Gated MLPs with stacked weights; each token runs the experts chosen for it."""

    def __init__(self, dim: int, spec: MLPSpec, num_experts: int):
        super().__init__()
        self.activation = spec.activation
        self.gate_proj = ExpertLinear(num_experts, dim, spec.hidden)
        self.up_proj = ExpertLinear(num_experts, dim, spec.hidden)
        self.down_proj = ExpertLinear(num_experts, spec.hidden, dim)

    @property
    def weights(self) -> ExpertWeights:
        """The stacks as ops take them."""
        return ExpertWeights(self.gate_proj.weights, self.up_proj.weights, self.down_proj.weights, self.activation)


class MoE(nn.Module):
    """A router and its experts, with an optional shared expert."""

    def __init__(self, dim: int, spec: MoESpec):
        super().__init__()
        self.spec = spec
        self.router = Linear(dim, spec.num_experts, bias=False)
        self.experts = Experts(dim, spec.expert, spec.num_experts)
        if spec.shared is not None:
            self.shared = MLP(dim, spec.shared)

    def __call__(self, x: mx.array, *, norm: NormWeight = None, residual: mx.array | None = None) -> mx.array:
        """residual + moe(norm(x)): (B, L, D) -> (B, L, D)."""
        s = self.spec
        if s.shared is not None:
            residual = self.shared(x, norm=norm, residual=residual)  # (B, L, D)
        x = normalize(x, norm)  # (B, L, D)
        logits = linear(x, self.router.weights)  # (B, L, E)
        record(logits, s.top_k)
        chosen, weights = route(logits, s.top_k, s.router, renormalize=s.renormalize)  # (B, L, T) twice
        if s.weigh == "output":
            return experts(x, self.experts.weights, chosen, weights, residual)  # (B, L, D)
        scaled = x[..., None, None, :] * weights.astype(x.dtype)[..., None, None]  # (B, L, T, 1, D)
        y = expert_outputs(scaled, self.experts.weights, chosen).sum(-2)  # (B, L, D)
        return y if residual is None else residual + y


def make_feed_forward(dim: int, spec: MLPSpec | MoESpec) -> MLP | MoE:
    """The feed-forward layer of a spec."""
    match spec:
        case MLPSpec():
            return MLP(dim, spec)
        case MoESpec():
            return MoE(dim, spec)
    raise TypeError(spec)

"""RMSNorm, LayerNorm, and where a residual connection puts them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.norm import layer_norm, rms_norm

from .spec import NormSpec, Placement


class RMSNorm(nn.Module):
    """Zhang & Sennrich 2019, arXiv:1910.07467. `unit_offset` scales by (1 + weight)."""

    def __init__(self, dim: int, spec: NormSpec):
        super().__init__()
        self.eps, self.unit_offset = spec.eps, spec.unit_offset
        if spec.weight:
            self.weight = mx.zeros(dim) if spec.unit_offset else mx.ones(dim)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., D)."""
        weight = self.get("weight")
        if weight is not None and self.unit_offset:
            # In float32: a bfloat16 weight near zero would vanish beside the 1.
            weight = 1 + weight.astype(mx.float32)
            return rms_norm(x.astype(mx.float32), weight, self.eps).astype(x.dtype)
        return rms_norm(x, weight, self.eps)


class LayerNorm(nn.Module):
    """Ba et al. 2016, arXiv:1607.06450."""

    def __init__(self, dim: int, spec: NormSpec):
        super().__init__()
        self.eps = spec.eps
        if spec.weight:
            self.weight = mx.ones(dim)
        if spec.bias:
            self.bias = mx.zeros(dim)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., D)."""
        return layer_norm(x, self.get("weight"), self.get("bias"), self.eps)


def make_norm(dim: int, spec: NormSpec | None) -> nn.Module:
    """The norm a spec asks for; the identity for None."""
    match spec:
        case None:
            return nn.Identity()
        case NormSpec(kind="rms"):
            return RMSNorm(dim, spec)
        case NormSpec(kind="layer"):
            return LayerNorm(dim, spec)
    raise TypeError(spec)


class ResidualNorm(nn.Module):
    """One residual connection: `x -> sum(x + branch(f(pre(x))))`, each a norm or the identity.

    pre: before the branch; post: after the sum; branch: on the branch's output; sandwich: pre and branch.
    """

    def __init__(self, dim: int, norm: NormSpec, placement: Placement):
        super().__init__()
        self.pre = make_norm(dim, norm if placement in ("pre", "sandwich") else None)
        self.branch = make_norm(dim, norm if placement in ("branch", "sandwich") else None)
        self.sum = make_norm(dim, norm if placement == "post" else None)

    def join(self, x: mx.array, y: mx.array) -> mx.array:
        """The stream `x` with the branch's output `y` added: (B, L, D) twice -> (B, L, D)."""
        return self.sum(x + self.branch(y))

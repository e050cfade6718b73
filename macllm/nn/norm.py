"""RMSNorm, LayerNorm, and their placement around a residual branch."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.norm import normalize
from macllm.ops.weights import LayerNormWeight, NormWeight, RMSNormWeight

from .spec import NormSpec, Placement


class RMSNorm(nn.Module):
    """Zhang & Sennrich 2019, arXiv:1910.07467. `unit_offset` scales by (1 + weight)."""

    def __init__(self, dim: int, spec: NormSpec):
        super().__init__()
        self.eps, self.shift = spec.eps, float(spec.unit_offset)
        if spec.weight:
            self.weight = mx.zeros(dim) if spec.unit_offset else mx.ones(dim)

    @property
    def weights(self) -> NormWeight:
        """The weight as ops take it."""
        return RMSNormWeight(self.get("weight"), self.eps, self.shift)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., D)."""
        return normalize(x, self.weights)


class LayerNorm(nn.Module):
    """Ba et al. 2016, arXiv:1607.06450."""

    def __init__(self, dim: int, spec: NormSpec):
        super().__init__()
        self.eps = spec.eps
        if spec.weight:
            self.weight = mx.ones(dim)
        if spec.bias:
            self.bias = mx.zeros(dim)

    @property
    def weights(self) -> NormWeight:
        """The weight as ops take it."""
        return LayerNormWeight(self.get("weight"), self.get("bias"), self.eps)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., D)."""
        return normalize(x, self.weights)


class Identity(nn.Module):
    """No norm: the input, unchanged."""

    weights: NormWeight = None

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., D)."""
        return x


Norm = RMSNorm | LayerNorm | Identity


def make_norm(dim: int, spec: NormSpec | None) -> Norm:
    """The norm of a spec; the identity for None."""
    match spec:
        case None:
            return Identity()
        case NormSpec(kind="rms"):
            return RMSNorm(dim, spec)
        case NormSpec(kind="layer"):
            return LayerNorm(dim, spec)
    raise TypeError(spec)


class Branch(Protocol):
    """A layer with its norm and residual: residual + f(norm(x)), (B, L, D) -> (B, L, D)."""

    def __call__(self, x: mx.array, *, norm: NormWeight, residual: mx.array | None) -> mx.array:
        """The sum. `norm` is computed before, `residual` added after."""
        ...


class ResidualNorm(nn.Module):
    """One residual connection: `x -> sum(x + branch(f(pre(x))))`, each a norm or the identity.

    pre: before the branch; post: after the sum; branch: on the branch's output; sandwich: pre and branch.
    """

    def __init__(self, dim: int, norm: NormSpec, placement: Placement):
        super().__init__()
        self.pre = make_norm(dim, norm if placement in ("pre", "sandwich") else None)
        self.branch = make_norm(dim, norm if placement in ("branch", "sandwich") else None)
        self.sum = make_norm(dim, norm if placement == "post" else None)

        self.only_adds = isinstance(self.branch, Identity) and isinstance(self.sum, Identity)

    def __call__(self, x: mx.array, f: Branch) -> mx.array:
        """The residual connection around `f`: (B, L, D) -> (B, L, D)."""
        if self.only_adds:
            return f(x, norm=self.pre.weights, residual=x)
        return self.sum(x + self.branch(f(x, norm=self.pre.weights, residual=None)))

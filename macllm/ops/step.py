"""Residual branches of a decoding step, one after another in one op: one new token in each of a few rows.

Where there is no such op for the device, the dtype or the model, the result is None and the caller takes the ops that
it is made of. Nothing here has a gradient: arrays that are being differentiated are not served either.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import mlx.core as mx

from .dispatch import native
from .quantized import rounds

ACTIVATIONS = {"silu": 2, "gelu_tanh": 3, "gelu": 4, "gelu_quick": 5}  # as the kernels number them
MOST_ROWS = 8

Norm = tuple[float, float, float]  # 0 none, 1 RMS, 2 layer; epsilon; 1 where the scale is 1 + weight
NO_NORM: Norm = (0.0, 0.0, 0.0)

Packing = tuple[float, float]  # bits and group of a quantized matrix
NOT_PACKED: Packing = (0.0, 0.0)


class Residual(NamedTuple):
    """The norms of sum(x + branch(f(pre(x)))), whose weights are the first of a step's."""

    pre: Norm
    branch: Norm
    sum: Norm


class Attention(NamedTuple):
    """An attention branch. Weights: the residual's three norms; q, k, v, o; the norms below."""

    num_heads: int
    scale: float
    softcap: float  # 0: none
    heat_floor: float  # of a temperature that grows with the position; 0: none
    heat_scale: float
    interleaved: bool
    q_norm: Norm
    k_norm: Norm
    q_head_norm: Norm
    k_head_norm: Norm


class MLP(NamedTuple):
    """A feed-forward branch. Weights: the residual's three norms; up, down, and gate if gated."""

    activation: int
    gated: bool


class Slots(NamedTuple):
    """The arrays in which a layer keeps keys and values, and what of them a step touches.

    Keys and values (B, K, S, Dh), or for `bits` the packed words, scales and biases of each, in groups of `group`.
    The new token's rows go into slot `at`, written into the very arrays, which nobody else may hold, nor views of them:
    whoever reads them must depend on the step's result. So does a step itself on the one before it: `after`. A row sees
    the slots from `first` on and stands at `position`. Pairs turn by `wavelengths` if there are any, and are scaled by
    `magnitude` then.
    """

    parts: Sequence[mx.array]
    at: int
    first: Sequence[int]
    position: Sequence[int]
    after: mx.array | None = None
    wavelengths: mx.array | None = None
    magnitude: float = 1.0
    bits: int = 0
    group: int = 0


class Branch(NamedTuple):
    """One branch: what `plan` made of it, its weights, and for attention what it attends over."""

    plan: Any
    weights: list[mx.array]
    slots: Slots | None = None


def serving(x: mx.array) -> ModuleType | None:
    """The kernels, if they take a stream like x (B, L, D) through steps."""
    return native(x) if x.shape[1] == 1 and x.shape[0] <= MOST_ROWS else None


def plan(
    kernels: ModuleType,
    norms: Residual,
    branch: Attention | MLP,
    packings: Sequence[Packing],
    present: Sequence[bool],
) -> Any:
    """All of a branch but its arrays. `packings` are those of its linear maps in turn.

    `present` says which of the weights it can have it has: weight and bias of each norm; weight, scales, biases and
    bias of each linear map. Calls take those that it has, in the same order.
    """
    parts = (*norms, *branch, *packings)
    numbers = [float(n) for part in parts for n in (part if isinstance(part, tuple) else (part,))]
    make = kernels.attention_plan if isinstance(branch, Attention) else kernels.mlp_plan
    return make(numbers, list(present))


def steps(x: mx.array, branches: list[Branch]) -> mx.array | None:
    """The stream after the branches: (B, 1, D) -> (B, 1, D)."""
    kernels = serving(x)
    return None if kernels is None else kernels.steps(x, rounds(), branches)

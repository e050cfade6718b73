"""Fused decode step (CPU): consecutive residual branches of one new token per row, as one native op.

Call `supports` first; where it is False, run the ops that a step fuses. The step has no gradient, and `supports` is
False for arrays that are being differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from . import cpu
from .dispatch import native
from .head_params import Packing
from .quantized import uses_int8_activations
from .weights import DenseWeight, LayerNormWeight, NormWeight, PackedWeight, RMSNormWeight, Weight

ACTIVATIONS = {"silu": 2, "gelu_tanh": 3, "gelu": 4, "gelu_quick": 5}  # the kernels' numbers
MOST_ROWS = 8


class AttentionParams(NamedTuple):
    """An attention branch. Weights: the residual's three norms; q, k, v, o; the norms below."""

    num_heads: int
    scale: float
    softcap: float  # 0: none
    temperature_floor: float  # of a temperature that grows with the position; 0: none
    temperature_scale: float
    interleaved: bool
    q_norm: NormWeight
    k_norm: NormWeight
    q_head_norm: NormWeight
    k_head_norm: NormWeight


class MLPParams(NamedTuple):
    """A feed-forward branch. Weights: the residual's three norms; up, down, and gate if gated."""

    activation: str
    gated: bool


class Slots(NamedTuple):
    """The buffers of a layer's keys and values, and the slots that a step reads and writes.

    Keys and values (B, K, S, Dh), or with `packing` the packed words, scales and biases of each. The step writes the
    new token's rows into slot `at` in place, so no other array may share these buffers, and readers must depend on the
    step's result; the step itself depends on `after`, the result of the step before. A row sees the slots from `first`
    on and has position `position`. Pairs rotate by `wavelengths`, unless None, and are scaled by `magnitude`.
    """

    parts: Sequence[mx.array]
    at: int
    first: Sequence[int]
    position: Sequence[int]
    after: mx.array | None = None
    wavelengths: mx.array | None = None
    magnitude: float = 1.0
    packing: Packing | None = None


class Branches(NamedTuple):
    """Consecutive branches: the plan of each, all their weights, and the slots of attention branches."""

    plans: Sequence[Any]
    weights: list[mx.array]
    slots: list[Slots]


def supports(x: mx.array, *arrays: Sequence[mx.array]) -> bool:
    """True if the kernels support hidden states like x (B, L, D) together with these arrays."""
    kernels = native(x) if x.shape[1] == 1 and x.shape[0] <= MOST_ROWS else None
    return kernels is not None and kernels.step_supports([x]) and all(map(kernels.step_supports, arrays))


def can_plan(weights: Sequence[Weight], activation: str | None = None) -> bool:
    """True if the kernels support a branch with these linear layers."""
    if activation is not None and activation not in ACTIVATIONS:
        return False
    return all(isinstance(w, DenseWeight) or (isinstance(w, PackedWeight) and w.mode == "affine") for w in weights)


def plan(
    norms: Sequence[NormWeight],
    branch: AttentionParams | MLPParams,
    weights: Sequence[Weight],
    present: Sequence[bool],
) -> Any:
    """Plan of a branch, without its arrays. `norms` are before, on and after it; `weights` in order.

    `present` marks the arrays that the branch has, of: weight and bias of each norm; weight, scales, biases and bias of
    each linear layer. `run` takes those present, in the same order.
    """
    numbers = [n for norm in norms for n in _norm_numbers(norm)]
    if isinstance(branch, AttentionParams):
        numbers += [float(n) for n in branch[:6]]
        numbers += [n for norm in branch[6:] for n in _norm_numbers(norm)]
        make = cpu.kernels().attention_plan
    else:
        numbers += [float(ACTIVATIONS[branch.activation]), float(branch.gated)]
        make = cpu.kernels().mlp_plan
    for w in weights:
        packed = isinstance(w, PackedWeight)
        numbers += [float(w.bits or 0), float(w.group_size or 0)] if packed else [0.0, 0.0]
    return make(numbers, list(present))


def _norm_numbers(norm: NormWeight) -> tuple[float, float, float]:
    """0 none, 1 RMS, 2 layer; epsilon; 1 where the scale is 1 + weight."""
    match norm:
        case None:
            return 0.0, 0.0, 0.0
        case RMSNormWeight(_, eps, shift):
            return 1.0, eps, shift
        case LayerNormWeight(_, _, eps):
            return 2.0, eps, 0.0


def run(x: mx.array, branches: Branches) -> mx.array:
    """Run the branches: (B, 1, D) -> (B, 1, D). Raises ValueError for what `supports` refuses."""
    return cpu.kernels().steps(x, uses_int8_activations(), *branches)

"""The residual branches of a decoding step, each in one op: one new token in each of a few rows.

Where there is no such op for the device, the dtype or the model, the result is None and the caller takes the ops that
these are made of. Nothing here has a gradient: arrays that are being differentiated are not served either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .dispatch import native

ACTIVATIONS = {"silu": 2, "gelu_tanh": 3, "gelu": 4, "gelu_quick": 5}  # as the kernels number them
MOST_ROWS = 8

Norm = tuple[float, float, float]  # 0 none, 1 RMS, 2 layer; epsilon; 1 where the scale is 1 + weight
NO_NORM: Norm = (0.0, 0.0, 0.0)


class Residual(NamedTuple):
    """The norms of sum(x + branch(f(pre(x)))), whose weights are the first of a step's."""

    pre: Norm
    branch: Norm
    sum: Norm


class Attention(NamedTuple):
    """What an attention branch is, besides its weights."""

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


class Slots(NamedTuple):
    """Dense keys and values (B, K, S, Dh) and what of them a step touches.

    The new token's rows go into slot `at`. A row sees the slots from `first` on and stands at `position`. The buffers
    are written where they lie unless they are `borrowed`: unless others may hold them, or views of them.
    """

    keys: mx.array
    values: mx.array
    at: int
    first: Sequence[int]
    position: Sequence[int]
    borrowed: bool


class Step:
    """One branch as an op. `present` says which of the weights that it can have it has: weight and bias of each
    norm and linear map in turn. Calls take those that it has.
    """

    def __init__(self, residual: Residual, numbers: Sequence[Any], present: Sequence[bool]) -> None:
        flat = [part for each in (*residual, *numbers) for part in (each if isinstance(each, tuple) else (each,))]
        self._numbers, self._present = [float(part) for part in flat], list(present)
        self._plan: Any = None

    def __deepcopy__(self, memo: object) -> Step:
        return self

    def _planned(self, kind: Any) -> Any:
        if self._plan is None:
            self._plan = kind(self._numbers, self._present)
        return self._plan


class AttentionStep(Step):
    """The stream after attention. Weights: the residual's three norms, q, k, v, o, and the norms of `Attention`."""

    def __call__(
        self, x: mx.array, slots: Slots, wavelengths: mx.array | None, magnitude: float, weights: list[mx.array]
    ) -> tuple[mx.array, mx.array, mx.array] | None:
        """(B, 1, D) -> (B, 1, D), with the keys and values that hold the new token's.

        Pairs turn by `wavelengths` if there are any, and are scaled by `magnitude` then.
        """
        kernels = native(x)
        if kernels is None or x.shape[0] > MOST_ROWS:
            return None
        return kernels.attention_step(self._planned(kernels.AttentionPlan), x, *slots, wavelengths, magnitude, weights)


class MLPStep(Step):
    """The stream after the feed-forward layer. Weights: the residual's three norms, up, down, gate."""

    def __call__(self, x: mx.array, weights: list[mx.array]) -> mx.array | None:
        """(B, 1, D) -> (B, 1, D)."""
        kernels = native(x)
        if kernels is None or x.shape[0] > MOST_ROWS:
            return None
        return kernels.mlp_step(self._planned(kernels.MlpPlan), x, weights)

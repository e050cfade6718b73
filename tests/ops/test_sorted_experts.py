"""Rows sorted by expert give what rows in any order give, and the gradients of NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops.experts import expert_outputs, experts
from macllm.ops.weights import AdaptedWeight, DenseWeight, ExpertWeights, Weight

N, T, E, D, F = 50, 2, 4, 8, 6
DRAW = np.random.default_rng(0)
SHAPES = ((E, F, D), (E, F, D), (E, D, F))
STACKS = [DRAW.standard_normal(shape) for shape in SHAPES]
X = DRAW.standard_normal((5, 10, D))
# An expert that no token chose, and one that most did.
CHOSEN = np.stack([np.where(np.arange(N) % 3, 2, 0), np.where(np.arange(N) % 5, 3, 0)], -1).reshape(5, 10, T)
SHARES = DRAW.random((5, 10, T))


def weights(stacks: list[mx.array], adapted: bool = False) -> ExpertWeights:
    made: list[Weight] = [DenseWeight(stack) for stack in stacks]
    if adapted:
        made = [
            AdaptedWeight(w, mx.ones((E, w.weight.shape[2], 2)) * 0.1, mx.ones((E, 2, w.weight.shape[1])) * 0.1, 2.0)
            for w in made
            if isinstance(w, DenseWeight)
        ]
    return ExpertWeights(*made, "silu")


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("count", [1, T])
def test_outputs_of_sorted_rows_are_those_of_few_rows_to_the_last_bit(count: int, adapted: bool) -> None:
    e = weights([mx.array(stack.astype(np.float32)) for stack in STACKS], adapted)
    x = mx.array(np.repeat(X[..., None, None, :], count, axis=2).astype(np.float32))
    chosen = mx.array(CHOSEN.astype(np.uint32))
    whole = expert_outputs(x, e, chosen)  # 100 choices
    parts = mx.concatenate([expert_outputs(x[at : at + 1], e, chosen[at : at + 1]) for at in range(5)])  # 20 each
    assert mx.array_equal(whole, parts)


def test_gradients_of_sorted_rows_are_those_of_numpy() -> None:
    def loss(x: mx.array, shares: mx.array, *stacks: mx.array) -> mx.array:
        return mx.square(experts(x, weights(list(stacks)), mx.array(CHOSEN.astype(np.uint32)), shares)).sum()

    inputs = [X, SHARES, *STACKS]
    found = mx.grad(loss, argnums=tuple(range(5)))(*(mx.array(each.astype(np.float32)) for each in inputs))
    for at, (slope, value) in enumerate(zip(found, inputs, strict=True)):
        wanted = differences(lambda changed, at=at: numpy_loss([*inputs[:at], changed, *inputs[at + 1 :]]), value)
        assert np.abs(np.array(slope) - wanted).max() <= 5e-6 * np.abs(wanted).max()


def numpy_loss(inputs: list[np.ndarray]) -> float:
    x, shares, gate, up, down = inputs
    g, u = (np.einsum("bld,bltfd->bltf", x, w[CHOSEN]) for w in (gate, up))
    y = np.einsum("bltf,bltdf->bltd", g / (1 + np.exp(-g)) * u, down[CHOSEN])
    return float(np.square((y * shares[..., None]).sum(2)).sum())


def differences(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of a function by central differences."""
    slope = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        moved = [at.copy(), at.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        slope[place] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return slope

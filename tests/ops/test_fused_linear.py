"""Linear layers by our Metal kernels: results and gradients are those of their fallback."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import linear as ops
from macllm.ops import using
from macllm.ops.experts import experts
from macllm.ops.weights import (
    AdaptedWeight,
    DenseWeight,
    ExpertWeights,
    LayerNormWeight,
    NormWeight,
    PackedWeight,
    RMSNormWeight,
    Weight,
)
from tests.simulator.intercept import simulated
from tests.simulator.run import ONCE


def draw(*shape: int, seed: int = 0) -> mx.array:
    return (
        mx.array(np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)) / shape[-1] ** 0.5
    )


def packed(*shape: int, seed: int = 0, bias: bool = False) -> PackedWeight:
    words, scales, biases = mx.quantize(draw(*shape, seed=seed), group_size=32, bits=4)
    return PackedWeight(words, scales, biases, 32, 4, bias=draw(shape[-2], seed=seed) if bias else None)


X, RESIDUAL = draw(2, 3, 64), draw(2, 3, 40, seed=1)
NORM: NormWeight = RMSNormWeight(1 + draw(64, seed=2), 1e-5, 1.0)
LOW_RANK = draw(64, 3, seed=3), draw(3, 40, seed=4)
CHOSEN = mx.array([[[0, 2], [1, 2], [2, 0]], [[1, 0], [0, 1], [2, 1]]])


def linear(w: Weight, norm: NormWeight = NORM) -> Callable[..., mx.array]:
    return lambda x, *rest: ops.linear(x, w, norm=norm, residual=rest[0] if rest else None)


def three(x: mx.array, bias: mx.array) -> mx.array:
    weights = [packed(n, 64, seed=n)._replace(bias=bias[:n]) for n in (40, 24, 24)]
    return mx.concatenate(ops.linears(x, weights, norm=NORM), axis=-1)


def adapted(x: mx.array, residual: mx.array, a: mx.array, b: mx.array) -> mx.array:
    return ops.linear(x, AdaptedWeight(packed(40, 64, bias=True), a, b, 0.7), norm=NORM, residual=residual)


def gated(x: mx.array, norm: mx.array) -> mx.array:
    weight = RMSNormWeight(norm, 1e-5)
    return ops.gated_linear(x, packed(40, 64), packed(40, 64, seed=5), "silu", norm=weight)


def mixed(x: mx.array, shares: mx.array, residual: mx.array) -> mx.array:
    stacks = ExpertWeights(packed(3, 32, 64), packed(3, 32, 64, seed=6), packed(3, 64, 32, seed=7), "gelu_tanh")
    return experts(x, stacks, CHOSEN, shares, residual)


CASES = [
    pytest.param(linear(packed(40, 64)), [X], "qmv", id="norm and product"),
    pytest.param(linear(packed(40, 64, bias=True)), [X, RESIDUAL], "qmv", id="with bias and residual"),
    pytest.param(linear(packed(40, 64), LayerNormWeight(1 + X[0, 0], X[0, 1], 1e-5)), [X], "qmv", id="layer norm"),
    pytest.param(linear(packed(64, 64), None), [X, X], "qmv", id="the input as residual"),
    pytest.param(linear(DenseWeight(draw(40, 64)), NORM), [X, RESIDUAL], None, id="dense"),
    pytest.param(linear(packed(40, 64)._replace(mode="nvfp4", scales=mx.zeros((40, 4), mx.uint8), biases=None,
                                                group_size=16), None), [X], None, id="a mode without kernel"),
    pytest.param(adapted, [X, RESIDUAL, *LOW_RANK], "lora_down", id="adapter"),
    pytest.param(three, [X, draw(40, seed=8)], "qmv_three", id="three"),
    pytest.param(gated, [X, 1 + draw(64, seed=9)], "qmv", id="gated"),
    pytest.param(mixed, [X, mx.abs(draw(2, 3, 2)), draw(2, 3, 64, seed=10)], "moe_gate_up", id="experts"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "arrays", "kernel"), CASES)
def test_results_and_gradients_equal_the_fallbacks(
    op: Callable[..., mx.array], arrays: list[mx.array], kernel: str | None
) -> None:
    def both() -> list[np.ndarray]:
        (y,), slopes = mx.vjp(lambda *a: [op(*a)], arrays, [draw(*op(*arrays).shape, seed=11)])
        return [np.array(each) for each in (op(*arrays), y, *slopes)]

    with using("reference"):
        wants = both()
    with simulated(ONCE) as log, using("metal"):
        found = both()
    assert {name for name, _ in log.dispatches} >= ({kernel} if kernel else set())
    assert kernel is not None or not log.dispatches
    for got, want in zip(found, wants, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5 * np.abs(want).max())


def test_too_many_rows_use_the_fallback() -> None:
    x, w = draw(3, 3, 64), packed(40, 64)
    with simulated(ONCE) as log, using("metal"):
        y = ops.linear(x, w, norm=NORM)
    assert not log.dispatches
    with using("reference"):
        np.testing.assert_allclose(np.array(y), np.array(ops.linear(x, w, norm=NORM)), atol=1e-4)


def test_an_adapter_with_dropout_keeps_its_mean() -> None:
    x, w = mx.ones((1, 64)), AdaptedWeight(DenseWeight(mx.zeros((40, 64))), *LOW_RANK, 1.0)
    mx.random.seed(0)
    mean = mx.stack([ops.linear(x, w._replace(dropout=0.5)) for _ in range(2000)]).mean(0)
    np.testing.assert_allclose(np.array(mean), np.array(ops.linear(x, w)), atol=0.15)

"""Products with packed matrices and their epilogues, against float64.

Slow: all shapes, packings and types together.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops.metal import launch
from macllm.ops.metal.quantized_matvec import qmv as plan
from tests.ops.metal.sweeps import sweep
from tests.simulator.intercept import simulated

TYPES = [mx.float32, mx.float16, mx.bfloat16]
ROUNDING = {mx.float32: 2.0**-18, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}


def random(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32)).astype(dtype)


def wide(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def packed(*shape: int, bits: int = 4, group: int = 64, dtype: mx.Dtype = mx.float32, seed: int = 0) -> plan.Matrix:
    return plan.Matrix(*mx.quantize(random(*shape, dtype=dtype, seed=seed), group_size=group, bits=bits), bits, group)


def dense(w: plan.Matrix) -> np.ndarray:
    scales, biases = w.scales.astype(mx.float32), w.biases.astype(mx.float32)
    return wide(mx.dequantize(w.words, scales, biases, group_size=w.group_size, bits=w.bits))


def normed(x: mx.array, norm: plan.Norm | None) -> np.ndarray:
    y = wide(x)
    if norm is None:
        return y
    return y / np.sqrt((y * y).mean(-1, keepdims=True) + norm.eps) * (wide(norm.weight) + norm.shift)


def active(x: np.ndarray, activation: str | None) -> np.ndarray:
    match activation:
        case "silu":
            return x / (1 + np.exp(-x))
        case "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x


def near(got: mx.array, want: np.ndarray) -> None:
    np.testing.assert_allclose(wide(got), want, rtol=0, atol=ROUNDING[got.dtype] * max(1.0, np.abs(want).max()))


SHAPES = [(1, 1, 128), (1, 37, 640), (2, 8, 1024), (5, 9, 256), (8, 16, 128)]


@pytest.mark.parametrize(
    ("rows", "count", "width", "bits", "group", "dtype"), sweep(SHAPES, [(4, 64), (8, 32), (4, 128), (2, 32)], TYPES)
)
def test_products_equal_the_definition(
    rows: int, count: int, width: int, bits: int, group: int, dtype: mx.Dtype
) -> None:
    x, w = random(rows, width, dtype=dtype), packed(count, width, bits=bits, group=group, dtype=dtype, seed=1)
    with simulated() as log:
        got = plan.product(x, w)
    near(got, wide(x) @ dense(w).T)
    assert log.faults == []


@pytest.mark.parametrize(("rows", "bits", "group", "dtype"), sweep([1, 3, 8], [(4, 64), (8, 32), (2, 32)], TYPES))
@pytest.mark.parametrize("normed_too", [True, False])
def test_three_products_equal_the_definition(
    rows: int, bits: int, group: int, dtype: mx.Dtype, normed_too: bool
) -> None:
    x = random(rows, 192, dtype=dtype)
    matrices = [packed(n, 192, bits=bits, group=group, dtype=dtype, seed=n) for n in (21, 9, 16)]
    norm = plan.Norm(random(192, dtype=dtype, seed=3), 1e-5, 1.0) if normed_too else None
    biases = None if normed_too else [random(n, dtype=dtype, seed=n + 1) for n in (21, 9, 16)]
    with simulated() as log:
        got = launch(plan.three(x, matrices, norm, biases))
    assert log.faults == []
    for n, (one, matrix) in enumerate(zip(got, matrices, strict=True)):
        near(one, normed(x, norm) @ dense(matrix).T + (0 if biases is None else wide(biases[n])))


def adapter(rows: int, width: int, count: int, rank: int) -> plan.Adapter:
    """A LoRA adapter in training's layout, with B transposed in memory."""
    return plan.Adapter(random(width, rank, seed=8), random(rank, count, seed=9).T, 0.5)


EXTRAS: dict[str, dict[str, Any]] = {
    "norm": {"norm": plan.Norm(random(128, seed=3), 1e-5, 1.0)},
    "SwiGLU": {"up": packed(21, 128, seed=4), "activation": "silu"},
    "GeGLU of the norm": {
        "up": packed(21, 128, seed=4),
        "activation": "gelu_tanh",
        "norm": plan.Norm(random(128, seed=3), 1e-6),
    },
    "bias and residual": {"bias": random(21, seed=5), "residual": True},
    "adapter": {"adapter": adapter(1, 128, 21, 8), "bias": random(21, seed=5)},
    "all of it": {"adapter": adapter(1, 128, 21, 3), "residual": True, "norm": plan.Norm(random(128, seed=3), 1e-5)},
}


@pytest.mark.parametrize(
    ("extras", "rows"), sweep([pytest.param(extras, id=name) for name, extras in EXTRAS.items()], [1, 3, 7])
)
def test_epilogues_equal_the_definition(extras: dict[str, Any], rows: int) -> None:
    x, w = random(rows, 128), packed(21, 128, seed=1)
    options = dict(extras)
    if "residual" in options:
        options["residual"] = random(rows, 21, seed=6)
    with simulated() as log:
        got = plan.product(x, w, plan.Epilogue(**options))
    y = normed(x, options.get("norm"))
    want = active(y @ dense(w).T, options.get("activation"))
    if "up" in options:
        want = want * (y @ dense(options["up"]).T)
    if "adapter" in options:
        a, b, alpha = options["adapter"]
        want = want + alpha * (y @ wide(a) @ wide(b).T)
    want = want + (wide(options["bias"]) if "bias" in options else 0)
    near(got, want + (wide(options["residual"]) if "residual" in options else 0))
    assert len(log.dispatches) == (2 if "adapter" in options else 1)
    assert log.faults == []


@pytest.mark.parametrize(
    ("tokens", "top", "hidden", "bits", "dtype"), sweep([(1, 2, 64, 4), (3, 3, 96, 8), (1, 8, 32, 4)], TYPES)
)
def test_experts_equal_the_definition(tokens: int, top: int, hidden: int, bits: int, dtype: mx.Dtype) -> None:
    x, rng = random(tokens, 128, dtype=dtype), np.random.default_rng(5)
    gate, up = (packed(9, hidden, 128, bits=bits, group=32, dtype=dtype, seed=s) for s in (1, 2))
    w = packed(9, 21, hidden, bits=bits, group=32, dtype=dtype, seed=3)
    chosen = mx.array(np.stack([rng.permutation(9) for _ in range(tokens)]).astype(np.int32))[:, :top]
    weights, residual = mx.softmax(random(tokens, top, seed=4)), random(tokens, 21, dtype=dtype, seed=6)
    with simulated() as log:
        h = launch(plan.gate_up(x, gate, up, chosen, "silu"))[0]
        y = launch(plan.down_combine(h, w, chosen, weights, residual))[0]
        plain = launch(plan.down_combine(h, w, chosen, weights))[0]
    experts = np.array(chosen)
    gates, ups = (np.einsum("tk,tsnk->tsn", wide(x), dense(m)[experts]) for m in (gate, up))
    near(h, active(gates, "silu") * ups)
    want = np.einsum("tsk,tsnk,ts->tn", wide(h), dense(w)[experts], wide(weights))
    near(plain, want)
    near(y, want + wide(residual))
    assert log.faults == []


def test_matrices_are_read_once_for_all_rows() -> None:
    x, w = random(1, 256), packed(64, 256)
    with simulated() as log:
        plan.product(x, w)
    traffic = log.dispatches[0][1].traffic
    assert traffic["words"].read_bytes == w.words.nbytes
    assert traffic["words"].lines * 128 == w.words.nbytes

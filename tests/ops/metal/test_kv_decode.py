"""Attention of a few queries over a cache, against its definition in float64.

Slow: all sizes, types and packings together.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops.metal.attention import kv_decode as plan
from tests.ops.metal.sweeps import sweep
from tests.simulator.intercept import Log, simulated

TYPES = [mx.float32, mx.float16, mx.bfloat16]
ROUNDING = {mx.float32: 2.0**-18, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}


def random(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32)).astype(dtype)


def wide(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def cached(array: mx.array, count: int) -> mx.array:
    """The first `count` tokens of a cache with spare capacity, as a view."""
    return array[:, :, :count]


def attention(q: mx.array, k: np.ndarray, v: np.ndarray, rules: plan.DecodeParams) -> np.ndarray:
    """Attention by its definition in float64; a row without visible keys is 0."""
    (batch, heads, length, _), (kv_heads, count) = q.shape, k.shape[1:3]
    k, v = (np.repeat(x, heads // kv_heads, axis=1) for x in (k, v))
    scores = rules.scale * wide(q) @ k.swapaxes(-1, -2)
    if rules.softcap:
        scores = rules.softcap * np.tanh(scores / rules.softcap)
    at, key = np.arange(count - length, count)[:, None], np.arange(count)
    seen = np.broadcast_to(key >= np.array(rules.first).reshape(-1, 1, 1, 1), (batch, 1, 1, count))
    seen = seen & ((key <= at) if rules.causal else True) & ((at - key < rules.window) if rules.window else True)
    scores = np.where(seen, scores, -np.inf)
    if rules.sinks is not None:
        sunk = np.broadcast_to(wide(rules.sinks).reshape(-1, 1, 1), (batch, heads, length, 1))
        scores = np.concatenate([scores, sunk], axis=-1)
    weights = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e30))
    return (weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300))[..., :count] @ v


def near(got: mx.array, want: np.ndarray) -> None:
    np.testing.assert_allclose(wide(got), want, rtol=0, atol=ROUNDING[got.dtype] * max(1.0, np.abs(want).max()))


def passed(log: Log) -> None:
    assert log.faults == []


NOTHING = mx.array([0])
SIZES = [
    pytest.param((1, 1, 1, 1), 1, 8, id="one of everything"),
    pytest.param((2, 4, 2, 1), 37, 64, id="a token over a few"),
    pytest.param((1, 3, 1, 1), 300, 40, id="an odd head, two chunks"),
    pytest.param((1, 4, 2, 3), 513, 64, id="a few tokens over three chunks"),
    pytest.param((1, 1, 1, 1), 300, 8, id="two chunks of one row, whose few sums lie in constant memory"),
    pytest.param((1, 2, 2, 16), 20, 256, id="most tokens, the widest head"),
    pytest.param((1, 20, 1, 3), 70, 32, id="many heads on one"),
    pytest.param((1, 8, 2, 5), 513, 128, id="a whole model's heads", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("size", "count", "dim", "dtype"), sweep(SIZES, TYPES))
def test_decode_over_dense_keys_equals_the_definition(
    size: tuple[int, int, int, int], count: int, dim: int, dtype: mx.Dtype
) -> None:
    batch, heads, kv_heads, length = size
    q = random(batch, heads, length, dim, dtype=dtype)
    k, v = (random(batch, kv_heads, count + 5, dim, dtype=dtype, seed=s) for s in (1, 2))
    k, v = cached(k, count), cached(v, count)
    rules = plan.DecodeParams(dim**-0.5, True, NOTHING)
    with simulated() as log:
        near(plan.run(q, {"keys": k, "values": v}, rules), attention(q, wide(k), wide(v), rules))
    passed(log)


RULES = [
    pytest.param(plan.DecodeParams(0.2, False, NOTHING), id="all see all"),
    pytest.param(plan.DecodeParams(0.2, True, NOTHING, window=7), id="a window"),
    pytest.param(plan.DecodeParams(0.2, True, NOTHING, window=290), id="a window over chunks"),
    pytest.param(plan.DecodeParams(0.2, True, mx.array([3, 400]), softcap=3.0), id="padding, and a cap"),
    pytest.param(plan.DecodeParams(0.2, True, mx.array([0, 402]), sinks=random(4, seed=9)), id="sinks"),
    pytest.param(plan.DecodeParams(0.2, True, mx.array([400, 403])), id="rows that see nothing"),
    pytest.param(plan.DecodeParams(30.0, True, NOTHING), id="scores far apart"),
]


@pytest.mark.parametrize(("rules", "count"), sweep(RULES, [401, 100]))
def test_decode_masks_equal_the_definition(rules: plan.DecodeParams, count: int) -> None:
    q = random(2, 4, 3, 64)
    k, v = random(2, 2, count, 64, seed=1), random(2, 2, count, 64, seed=2)
    with simulated() as log:
        got = plan.run(q, {"keys": k, "values": v}, rules)
    want = attention(q, wide(k), wide(v), rules)
    np.testing.assert_allclose(wide(got), want, rtol=0, atol=2e-5 if rules.scale > 1 else 4e-6)
    passed(log)


PACKINGS = sweep(
    [((1, 4, 2, 1), 300, 128), ((2, 3, 1, 4), 21, 40), ((1, 2, 2, 2), 5, 64)],
    [(4, 4, 64), (8, 8, 32), (8, 4, 64), (4, 8, 128)],
    TYPES,
)


@pytest.mark.parametrize(("size", "count", "dim", "key_bits", "value_bits", "group", "dtype"), PACKINGS)
def test_decode_over_packed_keys_equals_the_definition(
    size: tuple[int, int, int, int], count: int, dim: int, key_bits: int, value_bits: int, group: int, dtype: mx.Dtype
) -> None:
    batch, heads, kv_heads, length = size
    q, rules = random(batch, heads, length, dim, dtype=dtype), plan.DecodeParams(dim**-0.5, True, NOTHING, window=250)
    parts, dense = {}, []
    for name, bits, seed in (("k", key_bits, 1), ("v", value_bits, 2)):
        rows = mx.pad(
            random(batch, kv_heads, count + 3, dim, dtype=dtype, seed=seed), [(0, 0)] * 3 + [(0, -dim % group)]
        )
        packed = [cached(x, count) for x in mx.quantize(rows, group_size=group, bits=bits)]
        parts |= dict(zip((f"{name}_words", f"{name}_scales", f"{name}_biases"), packed, strict=True))
        as_floats = [packed[0], *(x.astype(mx.float32) for x in packed[1:])]
        dense.append(wide(mx.dequantize(*as_floats, group_size=group, bits=bits))[..., :dim])
    with simulated() as log:
        got = plan.run(q, parts, rules, key_bits=key_bits, value_bits=value_bits)
    near(got, attention(q, *dense, rules))
    passed(log)


def test_keys_before_a_window_are_not_read() -> None:
    q, k, v = random(1, 2, 1, 64), random(1, 2, 1000, 64, seed=1), random(1, 2, 1000, 64, seed=2)
    with simulated() as log:
        plan.run(q, {"keys": k, "values": v}, plan.DecodeParams(0.1, True, NOTHING, window=100))
    ((_, result),) = log.dispatches
    assert result.traffic["keys"].lines * 128 == 2 * 100 * 64 * 4
    passed(log)

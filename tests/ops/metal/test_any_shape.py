"""Every family of kernels at random shapes and options, against float64. All of it is slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macllm.ops.metal import launch
from tests.ops.metal import test_flash as flash
from tests.ops.metal import test_kv_decode as decode
from tests.ops.metal import test_linear_attention as linear
from tests.ops.metal import test_qkv_post as heads
from tests.ops.metal import test_qmv as qmv
from tests.ops.metal import test_sample as sample
from tests.simulator.intercept import simulated

pytestmark = pytest.mark.slow
TYPES = st.sampled_from([mx.float32, mx.float16, mx.bfloat16])
FLAGS = st.booleans()


def of_any_shape(test: Callable[..., None]) -> Callable[..., None]:
    """The test with 15 examples of `data`, always the same."""
    rules = settings(
        max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    return rules(given(data=st.data())(test))


def some(data: Any, low: int, high: int, step: int = 1) -> int:
    return step * data.draw(st.integers(low, high))


def first_slots(data: Any, batch: int, count: int) -> mx.array:
    """First slots of rows: equal or different, some past the end, so that rows have no visible keys."""
    size = data.draw(st.sampled_from([1, batch]))
    return mx.array(data.draw(st.lists(st.integers(-3, count + 2), min_size=size, max_size=size)))


@of_any_shape
def test_qkv_post_equals_the_definition_at_any_shape(data: Any) -> None:
    dim, batch, length = some(data, 1, 20, 8), some(data, 1, 3), some(data, 1, 20)
    rules = heads.made(
        dim,
        some(data, 0, dim // 2),
        normed=data.draw(FLAGS),
        interleaved=data.draw(FLAGS),
        shift=data.draw(st.sampled_from([0.0, 1.0])),
        magnitude=data.draw(st.sampled_from([1.0, 0.7])),
    )
    offset = [some(data, -5, 300) for _ in range(data.draw(st.sampled_from([1, batch])))]
    size, counts = (batch, length), (some(data, 1, 6), some(data, 1, 3))
    heads.test_heads_equal_the_definition(size, counts, rules, offset, data.draw(TYPES))
    heads.test_gradients_equal_the_references(size, counts, rules, offset)


@of_any_shape
def test_qkv_post_packed_equals_the_definition_at_any_shape(data: Any) -> None:
    dim, bits, group = some(data, 1, 16, 8), data.draw(st.sampled_from([2, 4, 8])), data.draw(st.sampled_from([32, 64]))
    heads.test_packed_keys_and_values_equal_mlxs(dim, bits, group, data.draw(TYPES))


@of_any_shape
def test_kv_decode_equals_the_definition_at_any_shape(data: Any) -> None:
    batch, kv_heads, group, length = some(data, 1, 2), some(data, 1, 2), some(data, 1, 5), some(data, 1, 16)
    dim, count, dtype = some(data, 1, 20, 8), length + some(data, 0, 560), data.draw(TYPES)
    q = decode.random(batch, length, kv_heads * group, dim, dtype=dtype).swapaxes(1, 2)
    room = some(data, 0, 7)
    keys, values = (
        decode.random(batch, count + room, kv_heads, dim, dtype=dtype, seed=s).swapaxes(1, 2)[:, :, :count]
        for s in (1, 2)
    )
    rules = decode.plan.DecodeParams(
        dim**-0.5,
        data.draw(FLAGS),
        first_slots(data, batch, count),
        window=data.draw(st.sampled_from([0, 1, 9, 300])),
        softcap=data.draw(st.sampled_from([0.0, 2.0])),
        sinks=data.draw(st.sampled_from([None, decode.random(kv_heads * group, seed=9)])),
    )
    with simulated() as log:
        got = decode.plan.run(q, {"keys": keys, "values": values}, rules)
    assert log.faults == []
    decode.near(got, decode.attention(q, decode.wide(keys), decode.wide(values), rules))


@of_any_shape
def test_kv_decode_packed_equals_the_definition_at_any_shape(data: Any) -> None:
    size = some(data, 1, 2), some(data, 1, 3) * 2, 2, some(data, 1, 5)
    bits, group = [data.draw(st.sampled_from([4, 8])) for _ in "kv"], data.draw(st.sampled_from([32, 64, 128]))
    dim, count = some(data, 1, 16, 8), size[3] + some(data, 0, 300)
    decode.test_decode_over_packed_keys_equals_the_definition(size, count, dim, *bits, group, data.draw(TYPES))


@of_any_shape
def test_qmv_equals_the_definition_at_any_shape(data: Any) -> None:
    group, bits, dtype = (
        data.draw(st.sampled_from([32, 64, 128])),
        data.draw(st.sampled_from([2, 4, 8])),
        data.draw(TYPES),
    )
    rows, count, width = some(data, 1, 8), some(data, 1, 40), some(data, 1, 5, group)
    x = qmv.random(rows, width, dtype=dtype)
    w, up = (qmv.packed(count, width, bits=bits, group=group, dtype=dtype, seed=s) for s in (1, 2))
    norm = qmv.plan.Norm(qmv.random(width, seed=3), 1e-5, data.draw(st.sampled_from([0.0, 1.0])))
    norm, up = data.draw(st.sampled_from([None, norm])), data.draw(st.sampled_from([None, up]))
    activation = data.draw(st.sampled_from([None, "silu", "gelu_tanh"]))
    with simulated() as log:
        got = qmv.plan.product(x, w, qmv.plan.Epilogue(norm, up, activation))
    assert log.faults == []
    y = qmv.normed(x, norm)
    want = qmv.active(y @ qmv.dense(w).T, activation)
    qmv.near(got, want if up is None else want * (y @ qmv.dense(up).T))


@of_any_shape
def test_qmv_three_equals_the_definition_at_any_shape(data: Any) -> None:
    bits, dtype = data.draw(st.sampled_from([2, 4, 8])), data.draw(TYPES)
    rows, width = some(data, 1, 8), some(data, 1, 5, 64)
    counts = [some(data, 1, 40) for _ in range(3)]
    x = qmv.random(rows, width, dtype=dtype)
    matrices = [qmv.packed(n, width, bits=bits, dtype=dtype, seed=i) for i, n in enumerate(counts)]
    norm = data.draw(st.sampled_from([None, qmv.plan.Norm(qmv.random(width, seed=3), 1e-5)]))
    biases = [qmv.random(n, dtype=dtype, seed=7) for n in counts] if data.draw(FLAGS) else None
    with simulated() as log:
        got = launch(qmv.plan.three(x, matrices, norm, biases))
    assert log.faults == []
    for i, matrix in enumerate(matrices):
        extra = 0 if biases is None else qmv.wide(biases[i])
        qmv.near(got[i], qmv.normed(x, norm) @ qmv.dense(matrix).T + extra)


@of_any_shape
def test_moe_equals_the_definition_at_any_shape(data: Any) -> None:
    bits, dtype, experts = data.draw(st.sampled_from([4, 8])), data.draw(TYPES), some(data, 4, 7)
    tokens, top, width, hidden = some(data, 1, 4), some(data, 1, 4), some(data, 1, 5, 32), some(data, 1, 4, 32)
    count, seed = some(data, 1, 40), some(data, 0, 99)
    x, options = qmv.random(tokens, width, dtype=dtype), {"bits": bits, "group": 32, "dtype": dtype}
    gate, up = (qmv.packed(experts, hidden, width, seed=s, **options) for s in (1, 2))
    down = qmv.packed(experts, count, hidden, seed=3, **options)
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.permutation(experts)[:top] for _ in range(tokens)]).astype(np.int32)
    weights = mx.softmax(qmv.random(tokens, top, seed=4), axis=-1)
    with simulated() as log:
        h = launch(qmv.plan.gate_up(x, gate, up, mx.array(chosen), "silu"))[0]
        y = launch(qmv.plan.down_combine(h, down, mx.array(chosen), weights))[0]
    assert log.faults == []
    gates, ups = (np.einsum("tk,tsnk->tsn", qmv.wide(x), qmv.dense(m)[chosen]) for m in (gate, up))
    qmv.near(h, qmv.active(gates, "silu") * ups)
    qmv.near(y, np.einsum("tsk,tsnk,ts->tn", qmv.wide(h), qmv.dense(down)[chosen], qmv.wide(weights)))


@of_any_shape
def test_sample_equals_the_definition_at_any_shape(data: Any) -> None:
    filters = sample.Filters(
        data.draw(st.sampled_from([0.3, 1.0, 1.9])),
        top_k=some(data, 0, 40),
        top_p=data.draw(st.sampled_from([0.1, 0.7, 1.0])),
        min_p=data.draw(st.sampled_from([0.0, 0.05])),
    )
    vocabulary, rows, seed = some(data, 1, 900), some(data, 1, 3), some(data, 0, 99)
    logits, rng = sample.likely(vocabulary, rows, seed), np.random.default_rng(seed)
    logits[rng.random(logits.shape) < data.draw(st.sampled_from([0.0, 0.5]))] = -np.inf
    logits[:, rng.integers(vocabulary)] = 1.0
    uniform = rng.random(rows).astype(np.float32)
    tokens, _ = sample.drawn(logits, uniform, filters)
    wide = logits.astype(np.float64)
    for row, token in enumerate(tokens):
        may = sample.kept(wide[row], filters)
        weights = np.exp((wide[row, may] - wide[row].max()) / filters.temperature)
        reached = np.sort(np.concatenate([[0.0], np.cumsum(weights) / weights.sum()]))
        if filters.any:
            place = int(np.flatnonzero(may == token)[0])
            assert reached[place] - 1e-5 <= uniform[row] <= reached[place + 1] + 1e-5
        else:
            assert token in may


def mask_params(data: Any, batch: int, length: int, count: int) -> flash.plan.FlashParams:
    segmented = length <= count and data.draw(FLAGS)
    ids = [sorted(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))) for _ in range(batch)]
    return flash.plan.FlashParams(
        0.3,
        data.draw(FLAGS),
        flash.NOTHING if segmented else first_slots(data, batch, count),
        window=data.draw(st.sampled_from([0, 0, 1, 13])),
        chunk=0 if segmented else data.draw(st.sampled_from([0, 0, 16])),
        softcap=data.draw(st.sampled_from([0.0, 2.0])),
        segments=mx.array(ids, mx.int32) if segmented else None,
    )


@of_any_shape
def test_flash_equals_the_definition_at_any_shape(data: Any) -> None:
    batch, kv_heads, group = some(data, 1, 2), some(data, 1, 2), some(data, 1, 3)
    length, count, dim = some(data, 1, 50), some(data, 1, 70), some(data, 1, 9, 8)
    size = flash.Size(batch, kv_heads * group, kv_heads, length, count, dim)
    rules = mask_params(data, batch, length, count)
    flash.forward_is_right(size, rules, data.draw(TYPES))
    flash.gradients_are_right(size, rules)


@of_any_shape
def test_linear_attention_equals_the_definition_at_any_shape(data: Any) -> None:
    size = some(data, 1, 2), some(data, 1, 2), some(data, 1, 140), some(data, 1, 5, 8), some(data, 1, 9, 8)
    dtype = data.draw(TYPES)
    linear.compared(size, data.draw(FLAGS), dtype, dtype)

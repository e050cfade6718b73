"""Kernels read each array through its own strides: queries, keys, values and packed parts."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops.head_params import Packing
from macllm.ops.metal import launch
from tests.ops.layouts import CACHED, LAYOUTS, PROJECTED, TURNED, WIDENED, Layout, apart, laid
from tests.ops.metal import test_flash as flash
from tests.ops.metal import test_kv_decode as decode
from tests.ops.metal import test_linear_attention as linear
from tests.ops.metal import test_qkv_post as heads
from tests.ops.metal import test_qmv as qmv
from tests.ops.metal import test_sample as sample
from tests.simulator.intercept import as_array, simulated
from tests.simulator.run import ONCE, check

BATCH, HEADS, KV_HEADS, LENGTH, COUNT, DIM = 2, 4, 2, 5, 37, 16
ATTENDED = [
    pytest.param(PROJECTED, CACHED, TURNED, id="values turned"),
    pytest.param(WIDENED, TURNED, CACHED, id="keys turned"),
    pytest.param(TURNED, WIDENED, PROJECTED, id="values out of a projection"),
]


def attended(*layouts: Layout) -> list[mx.array]:
    """Queries, keys and values."""
    shapes = [(HEADS, LENGTH), (KV_HEADS, COUNT), (KV_HEADS, COUNT)]
    made = [
        laid(flash.random(BATCH, *shape, DIM, seed=seed), layout)
        for seed, (shape, layout) in enumerate(zip(shapes, layouts, strict=True))
    ]
    assert apart(*made[1:])
    return made


@pytest.mark.parametrize(("q_layout", "k_layout", "v_layout"), ATTENDED)
def test_decode_reads_keys_and_values_through_their_strides(
    q_layout: Layout, k_layout: Layout, v_layout: Layout
) -> None:
    q, k, v = attended(q_layout, k_layout, v_layout)
    rules = decode.plan.DecodeParams(0.25, True, mx.array([0, 3]))
    with simulated(ONCE) as log:
        got = decode.plan.run(q, {"keys": k, "values": v}, rules)
    assert log.faults == []
    decode.near(got, decode.attention(q, decode.wide(k), decode.wide(v), rules))


@pytest.mark.parametrize(("q_layout", "k_layout", "v_layout"), ATTENDED)
def test_prefill_and_gradients_read_keys_and_values_through_their_strides(
    q_layout: Layout, k_layout: Layout, v_layout: Layout
) -> None:
    q, k, v = attended(q_layout, k_layout, v_layout)
    rules = flash.plan.FlashParams(0.25, True, mx.array([0, 3]))
    dout = laid(flash.random(*q.shape, seed=3), v_layout)
    want = flash.attention(q, flash.wide(k), flash.wide(v), rules, dout)
    with simulated(ONCE) as log:
        out, lse = flash.plan.run(q, {"keys": k, "values": v}, rules)
        arrays = {"q": q, "keys": k, "values": v, "out": out, "lse": lse, "dout": dout}
        gradients = flash.plan.run_vjp(arrays, rules)
    assert log.faults == []
    for got, one in zip([out, *gradients], [want.out, *want.gradients], strict=True):
        flash.near(got, one, by=2.0)


def packed() -> tuple[dict[str, mx.array], list[np.ndarray]]:
    """Keys of 8 bits and values of 4, each part with its own layout; and their dense values."""
    layouts = [
        Layout((0, 0, 3, 0), (0, 1, 2, 3)),
        Layout((0, 0, 0, 1), (0, 2, 1, 3)),
        Layout((0, 1, 0, 2), (0, 1, 2, 3)),
        Layout((0, 3, 0, 0), (0, 2, 1, 3)),
        Layout((0, 0, 9, 3), (0, 1, 2, 3)),
        Layout((0, 5, 0, 4), (0, 2, 1, 3)),
    ]
    parts, dense = {}, []
    for i, (name, bits) in enumerate((("k", 8), ("v", 4))):
        rows = flash.random(BATCH, KV_HEADS, COUNT, 64, seed=i + 1)
        made = mx.quantize(rows, group_size=32, bits=bits)
        dense.append(flash.wide(mx.dequantize(*made, group_size=32, bits=bits)))
        for part, array, layout in zip(("words", "scales", "biases"), made, layouts[3 * i : 3 * i + 3], strict=True):
            parts[f"{name}_{part}"] = laid(array, layout)
    assert apart(*parts.values())
    return parts, dense


def test_each_packed_part_is_read_through_its_strides() -> None:
    parts, (k, v) = packed()
    q = laid(flash.random(BATCH, HEADS, LENGTH, 64), PROJECTED)
    few, many = (params(0.125, True, mx.array([0, 3])) for params in (decode.plan.DecodeParams, flash.plan.FlashParams))
    with simulated(ONCE) as log:
        decoded = decode.plan.run(q, parts, few, key_bits=8, value_bits=4)
        out, _ = flash.plan.run(q, parts, many, key_bits=8, value_bits=4)
    assert log.faults == []
    decode.near(decoded, decode.attention(q, k, v, few))
    flash.near(out, flash.attention(q, k, v, many).out)


def test_heads_may_be_slices_of_one_projection() -> None:
    rules, offset = heads.made(40, 16), mx.array([3, 9])
    rows = heads.random(2, 3, (4 + 2 + 2) * 40)
    q, k, v = mx.split(rows, [4 * 40, 6 * 40], axis=-1)
    result = check(heads.plan.forward(q, k, v, rules, offset))
    assert result.faults == []
    wants = [heads.turned(x, n, rules, np.array([3, 9])) for x, n in ((q, rules.q_norm), (k, rules.k_norm))]
    wants.append(heads.wide(v).reshape(2, 3, 2, 40).transpose(0, 2, 1, 3))
    for got, want in zip(result.outputs, wants, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_gradients_of_heads_are_read_in_attentions_layout() -> None:
    rules, offset = heads.made(40, 16), mx.array([3])
    q, k, _ = mx.split(heads.random(2, 3, 8 * 40), [4 * 40, 6 * 40], axis=-1)
    plain = [heads.random(2, n, 3, 40, seed=n + i) for i, n in enumerate((4, 2, 2))]
    turned = [laid(x, layout) for x, layout in zip(plain, (TURNED, PROJECTED, WIDENED), strict=True)]
    names = ("q", "k", "dq", "dk", "dv")
    wants = check(heads.plan.backward(dict(zip(names, [q, k, *plain], strict=True)), rules, offset)).outputs
    result = check(heads.plan.backward(dict(zip(names, [q, k, *turned], strict=True)), rules, offset))
    assert result.faults == []
    for got, want in zip(result.outputs, wants, strict=True):
        assert np.array_equal(got, want)


def wider(x: mx.array, more: int) -> mx.array:
    """The same rows as slices of longer ones."""
    return laid(x, Layout((0,) * (x.ndim - 1) + (more,), tuple(range(x.ndim))))


def turned(x: mx.array) -> mx.array:
    """The same matrix, column-major."""
    return laid(x, Layout((0, 0), (1, 0)))


def test_rows_and_an_adapter_are_read_through_their_strides() -> None:
    x, w = wider(qmv.random(3, 128), 5), qmv.packed(21, 128, seed=1)
    residual = wider(qmv.random(3, 21, seed=6), 3)
    adapter = qmv.plan.Adapter(turned(qmv.random(128, 3, seed=8)), wider(qmv.random(21, 3, seed=9), 2), 0.5)
    with simulated(ONCE) as log:
        got = qmv.plan.product(x, w, qmv.plan.Epilogue(adapter=adapter, residual=residual))
    assert log.faults == []
    y = qmv.wide(x)
    want = y @ qmv.dense(w).T + 0.5 * (y @ qmv.wide(adapter.a) @ qmv.wide(adapter.b).T) + qmv.wide(residual)
    qmv.near(got, want)


def test_chosen_experts_and_weights_may_be_slices_of_longer_rows() -> None:
    x, residual = wider(qmv.random(3, 64), 5), wider(qmv.random(3, 21, seed=6), 2)
    gate, up = (qmv.packed(5, 32, 64, group=32, seed=s) for s in (1, 2))
    down = qmv.packed(5, 21, 32, group=32, seed=3)
    chosen = wider(mx.array([[4, 0], [2, 3], [1, 4]], mx.int32), 3)
    weights = wider(mx.softmax(qmv.random(3, 2, seed=4), axis=-1), 1)
    with simulated(ONCE) as log:
        h = launch(qmv.plan.gate_up(x, gate, up, chosen, "silu"))[0]
        got = launch(qmv.plan.down_combine(h, down, chosen, weights, residual))[0]
    assert log.faults == []
    experts = np.array(chosen)
    gates, ups = (np.einsum("tk,tsnk->tsn", qmv.wide(x), qmv.dense(m)[experts]) for m in (gate, up))
    hidden = qmv.active(gates, "silu") * ups
    qmv.near(h, hidden)
    want = np.einsum("tsk,tsnk,ts->tn", hidden, qmv.dense(down)[experts], qmv.wide(weights))
    qmv.near(got, want + qmv.wide(residual))


@pytest.mark.parametrize("filters", [sample.Filters(0.7, top_k=5), sample.Filters(0.7)], ids=["filters", "none"])
def test_logits_may_be_a_slice_of_a_prompts_logits(filters: sample.Filters) -> None:
    logits = mx.array(sample.likely(300, 3))
    part = laid(logits, Layout((0, 20), (0, 1)))
    uniform = mx.array([0.1, 0.5, 0.9])
    with simulated(ONCE) as log:
        want, got = (sample.plan.draw(x, uniform, filters) for x in (logits, part))
    assert log.faults == []
    for one, other in zip(want, got, strict=True):
        assert np.array_equal(np.array(one), np.array(other))


def linear_outputs(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
    state = linear.begun((BATCH, 2, 16, 8, 16))
    out = linear.plan.run(q, k, v, *state, causal=True)
    slopes = [v, *(mx.ones(x.shape) for x in state)]
    return [*out, *linear.plan.gradients((q, k, v, *state), slopes, out[0], out[3], causal=True)]


def linear_token(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
    return list(linear.plan.run(q, k, v, *linear.begun((BATCH, 2, 1, 8, 16)), causal=True))


def projected(*shapes: tuple[int, ...]) -> list[mx.array]:
    return [mx.abs(flash.random(*shape, seed=i)) for i, shape in enumerate(shapes)]


WHOLE: dict[str, tuple[Callable[..., list[mx.array]], list[mx.array]]] = {
    "linear attention": (linear_outputs, projected((2, 2, 16, 8), (2, 2, 16, 8), (2, 2, 16, 16))),
    "a token of linear attention": (linear_token, projected((2, 2, 1, 8), (2, 2, 1, 8), (2, 2, 1, 16))),
}


@pytest.mark.parametrize("op", WHOLE)
def test_linear_attention_reads_rows_in_any_layout(op: str) -> None:
    run, plain = WHOLE[op]
    moved = [laid(x, layout) for x, layout in zip(plain, (PROJECTED, TURNED, WIDENED), strict=True)]
    with simulated(ONCE) as log:
        wants, gots = run(*plain), run(*moved)
    assert log.faults == []
    for got, want in zip(gots, wants, strict=True):
        assert np.array_equal(np.array(got), np.array(want), equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_a_layout_keeps_the_values(layout: Layout) -> None:
    x = flash.random(2, 3, 4, 8)
    assert np.array_equal(np.array(laid(x, layout)), np.array(x))


def test_packed_heads_may_be_slices_of_one_projection() -> None:
    rules, offset = heads.made(40, 16), mx.array([3])
    parts = mx.split(heads.random(2, 3, 8 * 40), [4 * 40, 6 * 40], axis=-1)
    plain = [mx.array(np.array(x)) for x in parts]
    wants, gots = (check(heads.plan.packed(*x, rules, offset, Packing(4, 32))) for x in (plain, parts))
    assert gots.faults == []
    for got, want in zip(gots.outputs, wants.outputs, strict=True):
        assert np.array_equal(np.array(as_array(got, mx.float32)), np.array(as_array(want, mx.float32)))

"""Tiled attention and its gradients, against their definitions in float64.

Slow: heads of any width, all sizes in all types, all packings, and gradients of rules that others are made of.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops.attention import attention_reference
from macllm.ops.metal import KernelCall
from macllm.ops.metal.attention import flash as plan
from tests.ops.metal.sweeps import sweep
from tests.simulator.intercept import Log, simulated
from tests.simulator.run import RunOptions

TYPES = [mx.float32, mx.float16, mx.bfloat16]
ROUNDING = {mx.float32: 2.0**-18, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}
NOTHING = mx.array([0])


class Size(NamedTuple):
    """Sizes of queries and keys."""

    batch: int
    heads: int
    kv_heads: int
    length: int
    count: int
    dim: int = 64


def random(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32)).astype(dtype)


def wide(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def given(size: Size, dtype: mx.Dtype = mx.float32) -> tuple[mx.array, mx.array, mx.array]:
    """Queries in a projection's layout, and the filled slots of a larger cache's keys and values."""
    q = random(size.batch, size.length, size.heads, size.dim, dtype=dtype).swapaxes(1, 2)
    room = size.batch, size.kv_heads, size.count + 3, size.dim
    k, v = (random(*room, dtype=dtype, seed=s)[:, :, : size.count] for s in (1, 2))
    return q, k, v


def segments(*lengths: int) -> mx.array:
    return mx.array(np.repeat(np.arange(len(lengths)) * 3, lengths)[None].astype(np.int32))


def seen(size: Size, rules: plan.FlashParams) -> np.ndarray:
    """The dense mask by its definition: (B, 1, L, S) bool."""
    at, key = np.arange(size.count - size.length, size.count)[:, None], np.arange(size.count)
    first = np.array(rules.first).reshape(-1, 1, 1, 1)
    sees = np.broadcast_to(key >= first, (size.batch, 1, size.length, size.count))
    if rules.causal:
        sees = sees & (key <= at)
    if rules.window:
        sees = sees & (np.abs(at - key) < rules.window)
    if rules.chunk:
        sees = sees & (np.maximum(at - first, 0) // rules.chunk == (key - first) // rules.chunk)
    if rules.segments is not None:
        ids = np.array(rules.segments)[:, None, None]
        sees = sees & (ids == ids[..., size.count - size.length :].swapaxes(-1, -2))
    return sees


class Attention(NamedTuple):
    """Attention by its definition, in float64: a row without visible keys is 0."""

    out: np.ndarray
    lse: np.ndarray
    gradients: list[np.ndarray]


def attention(
    q: mx.array, k: np.ndarray, v: np.ndarray, rules: plan.FlashParams, dout: mx.array | None = None
) -> Attention:
    size = Size(*q.shape[:2], k.shape[1], q.shape[2], *k.shape[2:])
    group = size.heads // size.kv_heads
    q64, dout64 = wide(q), wide(q if dout is None else dout)
    k64, v64 = (np.repeat(x, group, axis=1) for x in (k, v))
    scores, slope = rules.scale * q64 @ k64.swapaxes(-1, -2), rules.scale
    if rules.softcap:
        bent = np.tanh(scores / rules.softcap)
        scores, slope = rules.softcap * bent, rules.scale * (1 - bent * bent)
    sunk = np.full(size.heads, -np.inf) if rules.sinks is None else wide(rules.sinks)
    sunk = np.broadcast_to(sunk[:, None, None], (*scores.shape[:3], 1))
    scores = np.concatenate([np.where(seen(size, rules), scores, -np.inf), sunk], axis=-1)
    most = np.maximum(scores.max(-1, keepdims=True), -1e30)
    total = np.exp(scores - most).sum(-1, keepdims=True)
    weights = (np.exp(scores - most) / np.maximum(total, 1e-300))[..., :-1]
    with np.errstate(divide="ignore"):
        lse = (most + np.log(total))[..., 0]
    out = weights @ v64
    along = dout64 @ v64.swapaxes(-1, -2)
    dscores = weights * (along - (dout64 * out).sum(-1, keepdims=True)) * slope
    shared = [
        x.reshape(size.batch, size.kv_heads, group, size.count, -1).sum(2)
        for x in (dscores.swapaxes(-1, -2) @ q64, weights.swapaxes(-1, -2) @ dout64)
    ]
    return Attention(out, lse, [dscores @ k64, *shared])


def near(got: mx.array, want: np.ndarray, *, by: float = 1.0) -> None:
    bound = by * ROUNDING[got.dtype] * max(1.0, np.abs(want).max())
    np.testing.assert_allclose(wide(got), want, rtol=0, atol=bound)


def forward_is_right(
    size: Size, rules: plan.FlashParams, dtype: mx.Dtype = mx.float32, *, by: float = 1.0, how: RunOptions | None = None
) -> None:
    q, k, v = given(size, dtype)
    with simulated(how) as log:
        out, lse = plan.run(q, {"keys": k, "values": v}, rules)
    assert log.faults == []
    want = attention(q, wide(k), wide(v), rules)
    near(out, want.out, by=by)
    np.testing.assert_allclose(wide(lse), want.lse, rtol=1e-5, atol=1e-5)


def gradients_are_right(
    size: Size, rules: plan.FlashParams, dtype: mx.Dtype = mx.float32, *, how: RunOptions | None = None
) -> Log:
    q, k, v = given(size, dtype)
    dout = random(*q.shape, dtype=dtype, seed=3)
    want = attention(q, wide(k), wide(v), rules, dout)
    made = {"out": mx.array(want.out).astype(dtype), "lse": mx.array(want.lse).astype(mx.float32)}
    with simulated(how) as log:
        gradients = plan.run_vjp({"q": q, "keys": k, "values": v, "dout": dout, **made}, rules)
    assert log.faults == []
    for got, one in zip(gradients, want.gradients, strict=True):
        near(got, one, by=2.0)
    return log


ODD = [
    pytest.param(Size(1, 1, 1, 1, 1, 8), id="one of everything"),
    pytest.param(Size(2, 4, 2, 37, 37), id="a few tiles"),
    pytest.param(Size(1, 2, 1, 33, 50, 128), id="a prompt after others"),
]
WIDTHS = [
    pytest.param(Size(1, 3, 1, 5, 70, 80), id="few queries"),
    pytest.param(Size(1, 2, 2, 35, 35, 96), id="no power of two"),
    pytest.param(Size(1, 1, 1, 40, 33, 40), id="more queries than keys"),
    pytest.param(Size(1, 2, 1, 20, 41, 256), id="the widest head"),
    pytest.param(Size(1, 1, 1, 9, 20, 136), id="a head that is filled up"),
]


@pytest.mark.parametrize(("size", "dtype"), sweep(ODD, TYPES))
def test_attention_equals_the_definition(size: Size, dtype: mx.Dtype) -> None:
    forward_is_right(size, plan.FlashParams(size.dim**-0.5, True, NOTHING), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
@pytest.mark.parametrize("size", WIDTHS)
def test_attention_equals_the_definition_for_any_head_width(size: Size, dtype: mx.Dtype) -> None:
    forward_is_right(size, plan.FlashParams(size.dim**-0.5, True, NOTHING), dtype)


RULES = [
    pytest.param(plan.FlashParams(0.2, False, NOTHING), id="all see all"),
    pytest.param(plan.FlashParams(0.2, True, NOTHING, window=7), id="a window"),
    pytest.param(plan.FlashParams(0.2, False, NOTHING, window=20), id="a window both ways"),
    pytest.param(plan.FlashParams(0.2, True, NOTHING, chunk=30), id="chunks"),
    pytest.param(plan.FlashParams(0.2, True, mx.array([5, -7]), chunk=16), id="chunks that begin elsewhere"),
    pytest.param(plan.FlashParams(0.2, False, mx.array([0, 40]), chunk=16), id="chunks both ways"),
    pytest.param(plan.FlashParams(0.2, True, mx.array([3, 60]), softcap=3.0), id="padding, and a cap"),
    pytest.param(plan.FlashParams(0.2, True, mx.array([70, 74])), id="rows that see nothing"),
    pytest.param(plan.FlashParams(0.2, True, NOTHING, segments=segments(20, 1, 9, 45)), id="segments"),
    pytest.param(plan.FlashParams(0.2, False, NOTHING, segments=segments(33, 42)), id="segments both ways"),
    pytest.param(plan.FlashParams(0.2, True, NOTHING, segments=segments(30, 45), window=11), id="a window in segments"),
]


@pytest.mark.parametrize("rules", RULES)
def test_masks_equal_the_definition(rules: plan.FlashParams) -> None:
    forward_is_right(Size(2 if rules.segments is None else 1, 2, 1, 45, 75), rules)


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(plan.FlashParams(0.2, True, mx.array([0, 74]), sinks=random(4, seed=9)), id="sinks"),
        pytest.param(plan.FlashParams(30.0, True, NOTHING), id="scores far apart"),
    ],
)
def test_scales_softcaps_and_sinks_equal_the_definition(rules: plan.FlashParams) -> None:
    forward_is_right(Size(2, 4, 2, 33, 75), rules, by=8.0 if rules.scale > 1 else 1.0)


PACKINGS = [((4, 4), 64, mx.float16), ((8, 8), 32, mx.float32), ((8, 4), 64, mx.bfloat16), ((4, 8), 128, mx.float32)]


@pytest.mark.parametrize(("dim", "bits", "group", "dtype"), sweep([64, 40], PACKINGS))
def test_attention_over_packed_keys_equals_the_definition(
    dim: int, bits: tuple[int, int], group: int, dtype: mx.Dtype
) -> None:
    q, k, v = given(Size(2, 3, 1, 40, 66, dim), dtype)
    rules = plan.FlashParams(dim**-0.5, True, mx.array([0, 9]), window=50)
    parts, dense = {}, []
    for name, width, rows in (("k", bits[0], k), ("v", bits[1], v)):
        padded = mx.pad(rows, [(0, 0)] * 2 + [(0, 5), (0, -dim % group)])
        packed = [x[:, :, : rows.shape[2]] for x in mx.quantize(padded, group_size=group, bits=width)]
        parts |= dict(zip((f"{name}_words", f"{name}_scales", f"{name}_biases"), packed, strict=True))
        as_floats = [packed[0], *(x.astype(mx.float32) for x in packed[1:])]
        dense.append(wide(mx.dequantize(*as_floats, group_size=group, bits=width))[..., :dim])
    with simulated() as log:
        out, lse = plan.run(q, parts, rules, key_bits=bits[0], value_bits=bits[1])
    assert log.faults == []
    want = attention(q, dense[0], dense[1], rules)
    near(out, want.out)
    np.testing.assert_allclose(wide(lse), want.lse, rtol=0, atol=8 * ROUNDING[dtype])


def test_masked_keys_are_not_read() -> None:
    q, k, v = given(Size(1, 2, 2, 32, 300))
    with simulated() as log:
        plan.run(q, {"keys": k, "values": v}, plan.FlashParams(0.1, True, NOTHING, window=50))
    ((_, result),) = log.dispatches
    for name in ("keys", "values"):
        assert result.traffic[name].lines * 128 == 2 * (32 + 50 - 1) * 64 * 4
    assert log.faults == []


def bytes_of_tiles(sees: np.ndarray, call: KernelCall, row_bytes: int) -> int:
    """Bytes between the first and the last row that each tile sees on the other side."""
    tiles = np.split(sees, range(8 * call.template["BLOCKS"], len(sees), 8 * call.template["BLOCKS"]))
    spans = [np.flatnonzero(tile.any(0)) for tile in tiles]
    return row_bytes * sum(int(span[-1] - span[0]) + 1 for span in spans)


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(plan.FlashParams(0.1, True, NOTHING), id="causal"),
        pytest.param(plan.FlashParams(0.1, True, NOTHING, window=20), id="a window"),
        pytest.param(plan.FlashParams(0.1, True, NOTHING, chunk=64), id="chunks"),
        pytest.param(plan.FlashParams(0.1, True, NOTHING, segments=segments(40, 30, 58)), id="segments"),
    ],
)
def test_a_tile_reads_only_its_visible_keys(rules: plan.FlashParams) -> None:
    size = Size(1, 1, 1, 128, 128)
    q, k, v = given(size)
    sees, row_bytes = seen(size, rules)[0, 0], 64 * 4
    with simulated() as log:
        out, lse = plan.run(q, {"keys": k, "values": v}, rules)
        arrays = {"q": q, "keys": k, "values": v, "lse": lse, "out": out, "dout": out}
        plan.run_vjp(arrays, rules)
    assert log.faults == []
    forward, _, of_q, of_kv = (result.traffic for _, result in log.dispatches)
    once = bytes_of_tiles(sees, plan.forward(q, {"keys": k, "values": v}, rules), row_bytes)
    assert [forward[name].read_bytes for name in ("q", "keys", "values")] == [128 * row_bytes, once, once]
    once = bytes_of_tiles(sees, plan.gradient_q(arrays, rules), row_bytes)
    assert [of_q[name].read_bytes for name in ("keys", "values")] == [2 * once, once]
    once = bytes_of_tiles(sees.T, plan.gradient_kv(arrays, rules), row_bytes)
    assert [of_kv[name].read_bytes for name in ("q", "dout")] == [2 * once, once]


def test_outputs_are_linear_in_the_length() -> None:
    size = Size(1, 1, 1, 150, 150, 8)
    log = gradients_are_right(size, plan.FlashParams(0.3, True, NOTHING))
    assert max(out.size for _, result in log.dispatches for out in result.outputs) == 150 * 8
    q, k, v = given(size)
    made = plan.forward(q, {"keys": k, "values": v}, plan.FlashParams(0.3, True, NOTHING)).outputs
    assert [shape for shape, _ in made.values()] == [(1, 1, 150, 8), (1, 1, 150)]


@pytest.mark.parametrize(("size", "dtype"), sweep(ODD, TYPES))
def test_gradients_equal_the_definition(size: Size, dtype: mx.Dtype) -> None:
    gradients_are_right(size, plan.FlashParams(size.dim**-0.5, True, NOTHING), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
@pytest.mark.parametrize("size", WIDTHS)
def test_gradients_equal_the_definition_for_any_head_width(size: Size, dtype: mx.Dtype) -> None:
    gradients_are_right(size, plan.FlashParams(size.dim**-0.5, True, NOTHING), dtype)


def slow_if_combined(case: Any) -> Any:
    """The case, marked slow if it combines the masks of other cases."""
    both_ways = ("chunks that begin elsewhere", "chunks both ways", "segments both ways", "a window in segments")
    return pytest.param(*case.values, id=case.id, marks=[pytest.mark.slow] if case.id in both_ways else [])


@pytest.mark.parametrize("rules", list(map(slow_if_combined, RULES)))
def test_gradients_of_masked_attention_equal_the_definition(rules: plan.FlashParams) -> None:
    gradients_are_right(Size(2 if rules.segments is None else 1, 2, 1, 45, 75), rules)


def test_gradients_with_sinks_equal_the_definition() -> None:
    rules = plan.FlashParams(0.2, True, NOTHING, sinks=random(2, seed=9))
    gradients_are_right(Size(1, 2, 1, 30, 30), rules)


def test_gradients_of_the_op_equal_the_references() -> None:
    q, k, v = given(Size(1, 4, 2, 40, 40))
    dout, rules = random(*q.shape, seed=3), plan.FlashParams(0.2, True, NOTHING, softcap=2.0)

    def run(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return attention_reference(q, k, v, scale=0.2, mask="causal", softcap=2.0)

    (out,), wants = mx.vjp(run, [q, k, v], [dout])
    with simulated() as log:
        got, lse = plan.run(q, {"keys": k, "values": v}, rules)
        gradients = plan.run_vjp({"q": q, "keys": k, "values": v, "out": got, "lse": lse, "dout": dout}, rules)
    assert log.faults == []
    for one, want in zip([got, *gradients], [out, *wants], strict=True):
        near(one, wide(want), by=2.0)

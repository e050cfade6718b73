"""Linear attention and its gradients, against their definitions in float64. Slow: many chunks."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import using
from macllm.ops.linear_attention import (
    State,
    elu_features,
    linear_attention,
    linear_attention_reference,
    random_projection,
    softmax_features,
)
from macllm.ops.metal import linear_attention as plan
from tests.simulator.intercept import simulated

TYPES = [mx.float32, mx.float16, mx.bfloat16]
ROUNDING = {mx.float32: 2.0**-18, mx.float16: 2.0**-9, mx.bfloat16: 2.0**-6}

Size = tuple[int, int, int, int, int]  # B, H, L, M, D


def random(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32)).astype(dtype)


def wide(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def inputs(size: Size, dtype: mx.Dtype = mx.float32) -> list[mx.array]:
    """Features of queries and keys, and values."""
    batch, heads, length, features, dim = size
    q, k = (elu_features(random(batch, heads, length, features, dtype=dtype, seed=s)) for s in (0, 1))
    return [q, k, random(batch, heads, length, dim, dtype=dtype, seed=2)]


def begun(size: Size) -> State:
    """A state of five keys."""
    batch, heads, _, features, dim = size
    k, v = elu_features(random(batch, heads, 5, features, seed=3)), random(batch, heads, 5, dim, seed=4)
    return State(k.swapaxes(-1, -2) @ v, k.sum(-2))


def defined(q: mx.array, k: mx.array, v: mx.array, state: State, causal: bool) -> list[np.ndarray]:
    """Result, final state and totals in float64, row by row."""
    queries, keys, values, sums, norm = (wide(x) for x in (q, k, v, *state))
    after = sums + keys.swapaxes(-1, -2) @ values, norm + keys.sum(-2)
    rows, totals = [], []
    for t in range(q.shape[2]):
        end = t + 1 if causal else q.shape[2]
        own = sums + keys[:, :, :end].swapaxes(-1, -2) @ values[:, :, :end], norm + keys[:, :, :end].sum(-2)
        totals.append((queries[:, :, t] * own[1]).sum(-1))
        total = np.where(totals[-1] > 0, totals[-1], 1)[..., None]
        rows.append((queries[:, :, t, None] @ own[0])[:, :, 0] / total)
    return [np.stack(rows, 2), *after, np.stack(totals, 2)]


def gradients(
    q: mx.array, k: mx.array, v: mx.array, state: State, slopes: list[mx.array], causal: bool
) -> list[np.ndarray]:
    """Gradients of q, k, v and the state in float64, by the quotient rule, with all weights in memory."""
    y, _, _, totals = defined(q, k, v, state, causal)
    queries, keys, values, sums, norm, dy, dsums, dnorm = (wide(x) for x in (q, k, v, *state, *slopes))
    direct = dy / totals[..., None]
    extra = -(direct * y).sum(-1, keepdims=True)
    seen = np.tril(np.ones((q.shape[2],) * 2)) if causal else 1.0
    dw = seen * (direct @ values.swapaxes(-1, -2) + extra)
    weights = seen * (queries @ keys.swapaxes(-1, -2))
    dq = dw @ keys + direct @ sums.swapaxes(-1, -2) + extra * norm[:, :, None]
    dk = dw.swapaxes(-1, -2) @ queries + values @ dsums.swapaxes(-1, -2) + dnorm[:, :, None]
    dv = weights.swapaxes(-1, -2) @ direct + keys @ dsums
    return [dq, dk, dv, dsums + queries.swapaxes(-1, -2) @ direct, dnorm + (queries * extra).sum(-2)]


def near(got: mx.array, want: np.ndarray, more: float = 1.0) -> None:
    bound = more * ROUNDING[got.dtype] * max(1.0, np.abs(want).max())
    np.testing.assert_allclose(wide(got), want, rtol=0, atol=bound)


CASES = [
    pytest.param((1, 1, 1, 8, 8), id="one of everything"),
    pytest.param((2, 1, 13, 16, 40), id="an odd length, an odd head"),
    pytest.param((1, 2, 150, 32, 64), id="three chunks"),
    pytest.param((1, 1, 67, 136, 24), id="columns in parts"),
    pytest.param((1, 1, 64, 8, 136), id="values in parts, a whole chunk"),
]


def compared(size: Size, causal: bool, dtype: mx.Dtype, values: mx.Dtype) -> None:
    q, k, v = inputs(size, dtype)
    v = v.astype(values)
    state = begun(size)
    slopes = [random(*shape, seed=7 + i) for i, shape in enumerate((v.shape, state.sums.shape, state.norm.shape))]
    slopes[0] = slopes[0].astype(values)
    with simulated() as log:
        out = plan.run(q, k, v, *state, causal=causal)
        got = plan.gradients((q, k, v, *state), slopes, out[0], out[3], causal=causal)
    assert log.faults == []
    worse = ROUNDING[values] / ROUNDING[mx.float32]  # of float32 results, for the rounded result goes into gradients
    for one, want in zip(out, defined(q, k, v, state, causal), strict=True):
        near(one, want)
    for one, want in zip(got, gradients(q, k, v, state, slopes, causal), strict=True):
        near(one, want, max(1.0, worse if one.dtype == mx.float32 else 1.0))


@pytest.mark.parametrize("size", CASES)
def test_results_and_gradients_equal_the_definition(size: Size) -> None:
    compared(size, True, mx.float32, mx.float32)


@pytest.mark.parametrize("size", CASES[1:3])
def test_bidirectional_results_and_gradients_equal_the_definition(size: Size) -> None:
    compared(size, False, mx.float32, mx.float32)


@pytest.mark.parametrize(
    ("dtype", "values"), [(mx.float16, mx.float16), (mx.bfloat16, mx.bfloat16), (mx.float32, mx.bfloat16)], ids=str
)
def test_16_bit_results_and_gradients_equal_the_definition(dtype: mx.Dtype, values: mx.Dtype) -> None:
    compared((1, 2, 70, 16, 24), True, dtype, values)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_many_chunks_equal_the_definition(dtype: mx.Dtype, causal: bool) -> None:
    compared((1, 1, 270, 136, 136), causal, dtype, dtype)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("size", CASES[:3])
def test_the_reference_equals_the_definition(size: Size, causal: bool) -> None:
    q, k, v = inputs(size)
    state = begun(size)
    slopes = [random(*shape, seed=7 + i) for i, shape in enumerate((v.shape, state.sums.shape, state.norm.shape))]

    def run(q: mx.array, k: mx.array, v: mx.array, *state: mx.array) -> list[mx.array]:
        y, after = linear_attention_reference(q, k, v, causal=causal, state=State(*state))
        return [y, *after]

    outs, got = mx.vjp(run, [q, k, v, *state], slopes)
    for one, want in zip(outs, defined(q, k, v, state, causal)[:3], strict=True):
        near(one, want)
    for one, want in zip(got, gradients(q, k, v, state, slopes, causal), strict=True):
        near(one, want)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_token_by_token_equals_the_whole(dtype: mx.Dtype) -> None:
    q, k, v = inputs((2, 2, 21, 24, 40), dtype)
    with simulated() as log, using("metal"):
        parts, state = [], None
        for begin, end in ((0, 9), (9, 18), (18, 19), (19, 20), (20, 21)):
            y, state = linear_attention(*(x[:, :, begin:end] for x in (q, k, v)), state=state)
            parts.append(y)
    assert log.faults == []
    assert [name for name, _ in log.dispatches] == ["linear_states", "linear_attention"] * 2 + ["linear_decode"] * 3
    assert state is not None
    empty = State.before(q, v)
    for one, want in zip((mx.concatenate(parts, 2), *state), defined(q, k, v, empty, True)[:3], strict=True):
        near(one, want)


@pytest.mark.parametrize("length", [1, 30])
def test_the_public_op_has_the_gradients_of_the_reference(length: int) -> None:
    arrays = inputs((1, 2, length, 8, 16))

    def loss(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        y, state = linear_attention(elu_features(q), elu_features(k), v)
        return mx.square(y).sum() + state.sums.sum()

    want, wants = mx.value_and_grad(loss, argnums=(0, 1, 2))(*arrays)
    with simulated() as log, using("metal"):
        value, got = mx.value_and_grad(loss, argnums=(0, 1, 2))(*arrays)
        mx.eval(value, got)
    assert log.faults == []
    assert "linear_attention_vjp" in [name for name, _ in log.dispatches]
    near(value, wide(want))
    for one, other in zip(got, wants, strict=True):
        near(one, wide(other))


def test_keys_with_zero_features_have_no_weight() -> None:
    q, k, v = inputs((1, 1, 20, 8, 8))
    k = mx.where(mx.arange(20)[:, None] < 11, 0, k)
    with simulated() as log, using("metal"):
        y, state = linear_attention(q, k, v)
        last, _ = linear_attention(q[:, :, 11:], k[:, :, 11:], v[:, :, 11:])
    assert log.faults == []
    assert not mx.any(y[:, :, :11]).item()
    near(y[:, :, 11:], wide(last))
    assert state.norm.shape == (1, 1, 8)


def test_a_token_reads_and_writes_its_state_once() -> None:
    q, k, v = inputs((1, 2, 1, 64, 64))
    with simulated() as log:
        plan.run(q, k, v, *begun((1, 2, 1, 64, 64)), causal=True)
    ((_, result),) = log.dispatches
    state = 2 * 64 * 64 * 4
    assert result.traffic["sums"].read_bytes == state
    assert result.traffic["last_sums"].written_bytes == state


def test_elu_features_are_positive_and_differentiable() -> None:
    x = mx.array([-50.0, -1.0, 0.0, 2.0, 200.0])
    np.testing.assert_allclose(elu_features(x), [np.exp(-50), np.exp(-1), 1, 3, 201], rtol=1e-5)
    np.testing.assert_allclose(
        mx.grad(lambda x: elu_features(x).sum())(x), [np.exp(-50), np.exp(-1), 1, 1, 1], rtol=1e-5
    )


def test_a_random_projection_has_orthogonal_rows() -> None:
    rows = wide(random_projection(20, 8, seed=3))
    assert rows.shape == (20, 8)
    for part in (rows[:8], rows[8:16], rows[16:]):
        products = part @ part.T
        np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-5)
    assert np.array_equal(rows, wide(random_projection(20, 8, seed=3)))
    assert not np.array_equal(rows, wide(random_projection(20, 8, seed=4)))
    many = np.stack([wide(random_projection(8, 8, seed=s)) for s in range(100)])
    assert (many**2).sum(-1).mean() == pytest.approx(8, rel=0.1)
    assert many.mean() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("causal", [True, False])
def test_softmax_features_approximate_softmax(causal: bool) -> None:
    q, k, v = (size * random(1, 2, 12, 16, seed=s) for s, size in enumerate((0.5, 0.5, 1.0)))
    scores = wide(q) @ wide(k).swapaxes(-1, -2) / 4
    weights = np.exp(np.where(np.tril(np.ones((12, 12))) > 0, scores, -np.inf) if causal else scores)
    want = weights / weights.sum(-1, keepdims=True) @ wide(v)
    of_q, of_k = softmax_features(q, k, random_projection(8192, 16, seed=0))
    got, _ = linear_attention(of_q, of_k, v, causal=causal)
    assert np.abs(wide(got) - want).mean() < 0.01


def test_softmax_features_equal_the_definition() -> None:
    q, k = random(1, 2, 6, 8), 5 * random(1, 2, 6, 8, seed=1)
    projection = random_projection(16, 8, seed=1)
    for scale in (None, 0.2):
        size = (8**-0.5 if scale is None else scale) ** 0.5
        exponents = [
            x @ wide(projection).T - (x * x).sum(-1, keepdims=True) / 2 for x in (wide(q) * size, wide(k) * size)
        ]
        of_q, of_k = softmax_features(q, k, projection, scale=scale)
        np.testing.assert_allclose(of_q, np.exp(exponents[0] - exponents[0].max(-1, keepdims=True)) / 4, atol=1e-5)
        np.testing.assert_allclose(of_k, (np.exp(exponents[1]) + 1e-6) / 4, rtol=1e-4)


def test_features_of_a_key_do_not_depend_on_other_keys() -> None:
    q, k = random(1, 2, 6, 8), 5 * random(1, 2, 6, 8, seed=1)
    projection = random_projection(16, 8, seed=1)
    whole, alone = (softmax_features(q, x, projection)[1] for x in (k, k[:, :, 2:4]))
    assert mx.allclose(whole[:, :, 2:4], alone, rtol=1e-4, atol=0)  # BLAS may round differently for fewer rows
    seen = mx.arange(6)[None, None, :, None] >= 3
    hidden = softmax_features(q, k, projection, seen=seen)[1]
    assert not mx.any(hidden[:, :, :3]).item()
    assert mx.array_equal(hidden[:, :, 3:], whole[:, :, 3:])


@pytest.mark.parametrize("size", [0.0, 30.0, 1e4])
def test_features_of_keys_of_any_size_are_finite_and_positive(size: float) -> None:
    q, k = size * random(1, 2, 6, 128), size * random(1, 2, 6, 128, seed=1)
    for features in softmax_features(q, k, random_projection(32, 128, seed=1)):
        assert mx.all(mx.isfinite(features)).item()
        assert mx.all(features > 0).item()

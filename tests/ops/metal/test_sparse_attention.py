"""Block-sparse attention and its gradients, against their definitions in float64. Slow: many blocks, large ones."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import using
from macllm.ops.metal import sparse_attention as plan
from macllm.ops.sparse_attention import Pattern, sparse_attention, sparse_attention_reference
from tests.simulator.intercept import simulated

TYPES = [mx.float32, mx.float16, mx.bfloat16]
ROUNDING = {mx.float32: 2.0**-18, mx.float16: 2.0**-9, mx.bfloat16: 2.0**-6}


def random(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32)).astype(dtype)


def wide(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def inputs(size: tuple[int, int, int, int, int], dtype: mx.Dtype = mx.float32) -> list[mx.array]:
    batch, heads, kv_heads, length, dim = size
    return [random(batch, n, length, dim, dtype=dtype, seed=i) for i, n in enumerate((heads, kv_heads, kv_heads))]


def seen_by(pattern: Pattern, length: int) -> np.ndarray:
    """(length, length) from the papers' words; random blocks are taken from the pattern, and counted elsewhere."""
    at, key = np.arange(length)[:, None] // pattern.block, np.arange(length) // pattern.block
    seen = np.abs(at - key) <= pattern.window
    seen |= (at < pattern.global_blocks) | (key < pattern.global_blocks)
    for row, blocks in enumerate(pattern.rows(-(-length // pattern.block))):
        for block in blocks:
            seen |= (at == row) & (key == block)
    return np.tril(seen) if pattern.causal else seen


def grouped(q: mx.array, *others: mx.array) -> list[np.ndarray]:
    return [np.repeat(wide(x), q.shape[1] // x.shape[1], axis=1) for x in others]


def weights_of(q: mx.array, k: np.ndarray, scale: float, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and logarithms of sums, in float64; a row that sees nothing has none."""
    scores = np.where(seen, scale * wide(q) @ k.swapaxes(-1, -2), -np.inf)
    most = np.maximum(scores.max(-1, keepdims=True), -1e30)
    weights = np.exp(scores - most)
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.where(total > 0, most + np.log(total), -np.inf)[..., 0]
    return weights / np.where(total > 0, total, 1), lse


def gradients(
    q: mx.array, k: mx.array, v: mx.array, slopes: mx.array, scale: float, seen: np.ndarray
) -> list[np.ndarray]:
    """Of q, k and v in float64, from the derivative of softmax."""
    keys, values = grouped(q, k, v)
    p, _ = weights_of(q, keys, scale, seen)
    dp = wide(slopes) @ values.swapaxes(-1, -2)
    ds = scale * p * (dp - (p * dp).sum(-1, keepdims=True))
    dq, dk, dv = ds @ keys, ds.swapaxes(-1, -2) @ wide(q), p.swapaxes(-1, -2) @ wide(slopes)
    batch, kv_heads, length, dim = k.shape
    return [dq, *(x.reshape(batch, kv_heads, -1, length, dim).sum(2) for x in (dk, dv))]


def near(got: mx.array, want: np.ndarray, more: float = 1.0) -> None:
    bound = more * ROUNDING[got.dtype] * max(1.0, np.abs(want).max(initial=0, where=np.isfinite(want)))
    np.testing.assert_allclose(wide(got), want, rtol=0, atol=bound)


def made(size: tuple[int, int, int, int, int], pattern: Pattern, lengths: mx.array | None = None) -> plan.Rules:
    length, dim = size[3:]
    lists = pattern.lists(-(-length // pattern.block))
    return plan.Rules(
        pattern.block, *lists, mx.array([length]) if lengths is None else lengths, dim**-0.5, pattern.causal
    )


def masked(seen: np.ndarray, lengths: mx.array | None) -> np.ndarray:
    if lengths is None:
        return seen
    there = np.arange(len(seen)) < np.array(lengths).reshape(-1, 1, 1, 1)
    return seen & there & there.swapaxes(-1, -2)


LONG = Pattern(16, window=1, global_blocks=1)
BIG = Pattern(16, window=1, global_blocks=2, random_blocks=2, seed=5)
LOCAL = Pattern(32, window=0, global_blocks=0)
CAUSAL = Pattern(16, window=2, global_blocks=1, random_blocks=1, causal=True)
WIDE = Pattern(32, window=1, random_blocks=1, causal=True)
CASES = [
    pytest.param((1, 1, 1, 1, 8), LONG, None, id="one of everything"),
    pytest.param((1, 2, 1, 83, 40), BIG, None, id="an odd length, an odd head"),
    pytest.param((1, 4, 2, 64, 32), LOCAL, None, id="each block by itself"),
    pytest.param((2, 3, 1, 52, 24), CAUSAL, mx.array([52, 37]), id="causal, and padding"),
    pytest.param((1, 2, 2, 130, 128), WIDE, mx.array([97]), id="large blocks of large heads", marks=pytest.mark.slow),
    pytest.param((2, 1, 1, 70, 16), LONG, mx.array([0, 64]), id="a row of padding alone"),
]


@pytest.mark.parametrize(("size", "pattern", "lengths"), CASES)
def test_results_and_gradients_are_what_the_definition_says(
    size: tuple[int, int, int, int, int], pattern: Pattern, lengths: mx.array | None
) -> None:
    compared(size, pattern, lengths, mx.float32)


@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
@pytest.mark.parametrize(("size", "pattern", "lengths"), CASES[3:4])
def test_numbers_of_16_bits(
    size: tuple[int, int, int, int, int], pattern: Pattern, lengths: mx.array | None, dtype: mx.Dtype
) -> None:
    compared(size, pattern, lengths, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("pattern", "lengths"),
    [(Pattern(32, 2, 1, 2, seed=3), None), (Pattern(16, 4, 2, 2, causal=True), mx.array([200, 111]))],
)
def test_many_blocks(pattern: Pattern, lengths: mx.array | None, dtype: mx.Dtype) -> None:
    compared((2, 2, 1, 211, 72), pattern, lengths, dtype)


def compared(size: tuple[int, int, int, int, int], pattern: Pattern, lengths: mx.array | None, dtype: mx.Dtype) -> None:
    q, k, v = inputs(size, dtype)
    rules = made(size, pattern, lengths)
    seen = masked(seen_by(pattern, size[3]), lengths)
    slopes = random(*q.shape, dtype=dtype, seed=9)
    with simulated() as log:
        out, lse = plan.run(q, k, v, rules)
        arrays = dict(zip(("q", "k", "v", "out", "lse", "slopes"), (q, k, v, out, lse, slopes), strict=True))
        got = plan.gradients(arrays, mx.zeros(lse.shape), rules)
    assert log.faults == []
    keys, values = grouped(q, k, v)
    weights, want = weights_of(q, keys, rules.scale, seen)
    near(out, weights @ values)
    near(lse, want)
    for one, want in zip(got, gradients(q, k, v, slopes, rules.scale, seen), strict=True):
        assert one.dtype == dtype
        near(one, want, 4)


@pytest.mark.parametrize(("size", "pattern", "lengths"), CASES)
def test_the_reference_is_what_the_definition_says(
    size: tuple[int, int, int, int, int], pattern: Pattern, lengths: mx.array | None
) -> None:
    q, k, v = inputs(size)
    scale, seen = size[4] ** -0.5, masked(seen_by(pattern, size[3]), lengths)
    counts = None if lengths is None else mx.broadcast_to(lengths, (size[0],))
    slopes = random(*q.shape, seed=9)
    outs, got = mx.vjp(
        lambda *x: sparse_attention_reference(*x, pattern, scale=scale, lengths=counts), [q, k, v], [slopes]
    )
    keys, values = grouped(q, k, v)
    near(outs[0], weights_of(q, keys, scale, seen)[0] @ values)
    for one, want in zip(got, gradients(q, k, v, slopes, scale, seen), strict=True):
        near(one, want)


def test_the_public_op_is_the_kernel_where_it_is_chosen() -> None:
    q, k, v = inputs((2, 4, 2, 50, 16))
    lengths, slopes = mx.array([50, 20]), random(2, 4, 50, 16, seed=9)

    def run(*arrays: mx.array) -> mx.array:
        return sparse_attention(*arrays, CAUSAL, scale=0.3, lengths=lengths)

    wants, want_gradients = mx.vjp(run, [q, k, v], [slopes])
    with simulated() as log, using("metal"):
        gots, got_gradients = mx.vjp(run, [q, k, v], [slopes])
        mx.eval(gots, got_gradients)
    assert log.faults == []
    names = [name for name, _ in log.dispatches]
    assert names == ["sparse_attention", "sparse_attention_dq", "sparse_attention_dkv"]
    for got, want in zip([*gots, *got_gradients], [*wants, *want_gradients], strict=True):
        near(got, wide(want))


def test_scores_far_apart() -> None:
    size = (1, 1, 1, 80, 32)
    q, k, v = inputs(size)
    rules = made(size, BIG)._replace(scale=30.0)
    with simulated() as log:
        out, lse = plan.run(q, k, v, rules)
    assert log.faults == []
    weights, want = weights_of(q, wide(k), rules.scale, seen_by(BIG, 80))
    near(out, weights @ wide(v), 16)
    near(lse, want, 4)


def test_blocks_that_are_not_listed_are_not_read() -> None:
    size = (1, 1, 1, 1024, 32)
    q, k, v = inputs(size)
    rules = made(size, Pattern(32, window=0, global_blocks=0, causal=True))
    lists = rules.keys._replace(starts=mx.minimum(rules.keys.starts, 16))  # the later half sees nothing
    with simulated() as log:
        out, _ = plan.run(q, k, v, rules._replace(keys=lists))
    ((_, result),) = log.dispatches
    assert result.traffic["k"].lines * 128 == 512 * 32 * 4
    assert not mx.any(out[:, :, 512:]).item()
    assert log.faults == []


PATTERNS = [LONG, BIG, LOCAL, CAUSAL, WIDE, Pattern(16, window=3, global_blocks=0, random_blocks=3, seed=1)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("length", [1, 16, 33, 300])
def test_a_pattern_has_windows_global_blocks_and_random_ones(pattern: Pattern, length: int) -> None:
    blocks = -(-length // pattern.block)
    fixed = np.zeros((blocks, blocks), bool)
    for i in range(blocks):
        for j in range(blocks):
            fixed[i, j] = abs(i - j) <= pattern.window or i < pattern.global_blocks or j < pattern.global_blocks
    may = np.tril(np.ones_like(fixed)) if pattern.causal else np.ones_like(fixed)
    rows = np.zeros_like(fixed)
    for i, row in enumerate(pattern.rows(blocks)):
        assert row == sorted(set(row))
        rows[i, row] = True
    assert not (rows & ~may).any()
    assert (rows | ~(fixed & may)).all()
    left = (may & ~fixed).sum(1)
    assert ((rows & ~fixed).sum(1) == np.minimum(left, pattern.random_blocks)).all()
    keys, queries = pattern.lists(blocks)
    for lists, want in ((keys, rows), (queries, rows.T)):
        starts, others = np.array(lists.starts), np.array(lists.others)
        got = np.zeros_like(want)
        for i in range(blocks):
            got[i, others[starts[i] : starts[i + 1]]] = True
        assert (got == want).all()
        assert starts[-1] == len(others) == want.sum()
    assert (np.array(pattern.mask(length)) == seen_by(pattern, length)).all()


def test_random_blocks_are_those_of_the_seed() -> None:
    one, other = (Pattern(16, 0, 0, 2, seed=seed) for seed in (1, 2))
    assert one.rows(40) == Pattern(16, 0, 0, 2, seed=1).rows(40)
    assert one.rows(40) != other.rows(40)
    assert one.rows(4) == [[0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 2, 3]]
    drawn = np.bincount([b for row in one.rows(200) for b in row], minlength=200)
    assert drawn.max() <= 12  # each 3 in the mean


@pytest.mark.parametrize("options", [{"block": 8}, {"window": -1}, {"global_blocks": -1}, {"random_blocks": -1}])
def test_a_pattern_that_cannot_be_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="block"):
        Pattern(**options)

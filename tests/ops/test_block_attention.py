"""Attention over listed blocks, against its definition in float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops.block_attention import Blocks, SharedKeys, block_attention
from macllm.ops.kv import Dense

SIZE = 4
ONE = [[[0, 1, -1], [0, 1, 2], [1, 2, 3], [3, 0, -1]]]
DOUBLED = [[[0, 0, 0], [1, 1, 2], [3, -1, 3], [2, 2, 2]]]
BY_HEAD = [ONE[0], DOUBLED[0]]


def random(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def counts(blocks: list, head: int, length: int, count: int) -> np.ndarray:
    """Counts of each key seen by each query: (L, S)."""
    seen = np.zeros((length, count))
    for query in range(length):
        for block in blocks[head % len(blocks)][query // SIZE]:
            if block >= 0:
                seen[query, block * SIZE : (block + 1) * SIZE] += 1
    return seen


def defined(q: mx.array, k: mx.array, v: mx.array, times: np.ndarray, scale: float) -> np.ndarray:
    """Attention by its definition, each key counted `times` (B, H, L, S) times."""
    q, k, v = (np.array(x).astype(np.float64) for x in (q, k, v))
    weights = times * np.exp(scale * q @ k.swapaxes(-1, -2))
    return weights / weights.sum(-1, keepdims=True) @ v


def given(length: int) -> tuple[mx.array, mx.array, mx.array]:
    return random(2, 2, length, 8), random(2, 2, length, 8, seed=1), random(2, 2, length, 8, seed=2)


@pytest.mark.parametrize("length", [13, 16])
@pytest.mark.parametrize("blocks", [ONE, DOUBLED, BY_HEAD], ids=["one for all heads", "doubled", "by head"])
def test_each_block_sees_its_listed_blocks_as_often_as_listed(blocks: list, length: int) -> None:
    q, k, v = given(length)
    got = block_attention(q, Dense(k, v), Blocks(np.array(blocks), SIZE), scale=0.4)
    times = np.stack([counts(blocks, head, length, length) for head in range(2)])
    np.testing.assert_allclose(np.array(got), defined(q, k, v, times[None], 0.4), atol=2e-6)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_a_window_and_lengths_hide_keys(window: int) -> None:
    q, k, v = given(14)
    lengths = np.array([14, 9])
    got = block_attention(
        q, Dense(k, v), Blocks(np.array(ONE), SIZE), scale=0.4, window=window, lengths=mx.array(lengths)
    )
    at = np.arange(14)
    near = np.abs(at[:, None] - at) < window
    times = counts(ONE, 0, 14, 14) * near * (at < lengths[:, None, None, None])
    real = np.broadcast_to((at < lengths[:, None])[:, None, :, None], got.shape)
    with np.errstate(invalid="ignore"):
        want = defined(q, k, v, np.broadcast_to(times, (2, 2, 14, 14)), 0.4)
    np.testing.assert_allclose(np.array(got)[real], want[real], atol=2e-6)
    assert np.isfinite(np.array(got)).all()  # of queries in padding, too, or gradients would be NaN


def test_shared_keys_are_seen_once_by_all_queries() -> None:
    q, k, v = given(15)
    listed = np.zeros((2, 15), bool)
    listed[0, [2, 11]] = listed[1, 7] = True
    at = np.array([[2, 11], [7, 0]])
    rows = np.arange(2)[:, None]
    keys, values = (mx.array(np.array(x).swapaxes(1, 2)[rows, at].swapaxes(1, 2)) for x in (k, v))
    shared = SharedKeys(keys, values, mx.array([[True, True], [True, False]]), mx.array(listed))
    got = block_attention(q, Dense(k, v), Blocks(np.array(ONE), SIZE), scale=0.4, shared=shared)
    times = np.where(listed[:, None, None], 1, counts(ONE, 0, 15, 15))
    np.testing.assert_allclose(np.array(got), defined(q, k, v, times, 0.4), atol=2e-6)


def test_queries_can_be_fewer_than_keys() -> None:
    q, k, v = given(16)
    got = block_attention(q[:, :, 4:12], Dense(k, v), Blocks(np.array(ONE)[:, 1:3], SIZE), scale=0.4)
    want = block_attention(q, Dense(k, v), Blocks(np.array(ONE), SIZE), scale=0.4)
    np.testing.assert_allclose(np.array(got), np.array(want[:, :, 4:12]), atol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_numbers_of_16_bits_keep_their_type(dtype: mx.Dtype) -> None:
    narrow = [x.astype(dtype) for x in given(13)]
    blocks = Blocks(np.array(ONE), SIZE)
    got = block_attention(narrow[0], Dense(*narrow[1:]), blocks, scale=0.4, lengths=mx.array([13, 6]))
    wide = [x.astype(mx.float32) for x in narrow]
    want = block_attention(wide[0], Dense(*wide[1:]), blocks, scale=0.4)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.array(got[0].astype(mx.float32)), np.array(want[0]), atol=0.03)

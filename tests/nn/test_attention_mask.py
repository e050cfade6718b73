"""Structured attention masks: equal to dense masks, without a dense mask's memory."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from macllm.nn.mask import attention_mask
from macllm.nn.position import Span
from macllm.nn.spec import Bidirectional, Causal, Chunked, Local, MaskSpec, Sliding
from macllm.ops import cpu
from macllm.ops.attention import attention, attention_reference
from macllm.ops.kv import Dense

MASKS = [Causal(), Sliding(7), Chunked(6), Bidirectional(), Local(5)]
SPANS = [
    pytest.param(Span(0, 1), id="the first token"),
    pytest.param(Span(0, 20), id="a sequence"),
    pytest.param(Span(13, 1), id="a token after others"),
    pytest.param(Span(13, 4), id="a few after others"),
    pytest.param(Span(0, 11, (0, 3)), id="padded rows"),
    pytest.param(Span(9, 5, (0, 3)), id="padded rows after others"),
]
WHOLE = (Bidirectional, Local)


def heads(batch: int, count: int, length: int) -> tuple[mx.array, mx.array, mx.array]:
    rng = np.random.default_rng(4)
    q, k, v = (
        rng.standard_normal((batch, n, m, 16)).astype(np.float32) for n, m in ((4, length), (2, count), (2, count))
    )
    return mx.array(q), mx.array(k), mx.array(v)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("spec", MASKS, ids=str)
def test_a_structured_mask_gives_the_attention_of_its_dense_mask(spec: MaskSpec, span: Span, start: int) -> None:
    if isinstance(spec, WHOLE) and (span.offset or span.left_padding):
        return  # such models have no cache
    if start > span.offset:
        return  # a cache never drops the new tokens
    q, k, v = heads(2, span.end - start, span.length)
    mask = attention_mask(spec, span, start, is_cached=span.offset > 0)
    got = attention(q, Dense(k, v), scale=0.3, mask=mask)
    want = attention_reference(q, k, v, scale=0.3, mask=mask.dense(), softcap=None)
    real = np.arange(span.offset, span.end) >= np.array(span.left_padding or (0, 0))[:, None]
    where = np.broadcast_to(real[:, None, :, None], got.shape)
    near = 2e-6 if mx.default_device() == mx.cpu else 2e-5  # a GPU's exponentials are less exact
    np.testing.assert_allclose(np.array(got)[where], np.array(want)[where], rtol=0, atol=near)


def test_only_windows_chunks_and_padding_that_hide_keys_count_as_masked() -> None:
    masked = [Span(0, 20), Span(13, 4)]
    assert [attention_mask(Sliding(7), span, 0).is_masked for span in masked] == [True, True]
    assert [attention_mask(Sliding(40), span, 0).is_masked for span in masked] == [False, False]
    assert [attention_mask(Chunked(6), span, 0).is_masked for span in masked] == [True, True]
    assert not attention_mask(Chunked(20), Span(0, 20), 0).is_masked
    assert not attention_mask(Sliding(7), Span(13, 1), 7).is_masked
    assert attention_mask(Causal(), Span(0, 4, (0, 2)), 0).is_masked
    assert attention_mask(Bidirectional(), Span(0, 4), 0, mx.array([2, 4])).is_masked
    assert not attention_mask(Bidirectional(), Span(0, 4), 0).is_masked


def peak(spec: MaskSpec, length: int, *, backwards: bool) -> int:
    """Peak memory of attention in bytes, without its inputs."""
    q, k, v = heads(1, length, length)
    mask = attention_mask(spec, Span(0, length), 0)

    def run(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return attention(q, Dense(k, v), scale=0.3, mask=mask).sum()

    mx.eval(q, k, v)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(run, argnums=(0, 1, 2))(q, k, v) if backwards else run(q, k, v))
    return mx.get_peak_memory() - before


@pytest.mark.skipif(not cpu.available(), reason="there are no kernels here")
@pytest.mark.parametrize("backwards", [False, True], ids=["prefill", "training"])
@pytest.mark.parametrize("spec", [Causal(), Sliding(200), Chunked(300), Bidirectional(), Local(200)], ids=str)
def test_attention_memory_is_linear_in_the_length(spec: MaskSpec, backwards: bool) -> None:
    short, long = (peak(spec, length, backwards=backwards) for length in (500, 2000))
    assert long <= 4.2 * short
    # Queries, results and gradients: a few rows per token; all scores would be 4 heads of 2000 per token.
    assert long <= 2000 * 4 * 16 * 4 * 12

"""Edges of attention masks: windows, chunks, padding and segments that just cover or miss a key."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.ops.metal import test_flash as flash
from tests.ops.metal import test_kv_decode as decode
from tests.simulator.intercept import simulated
from tests.simulator.run import ONCE

LENGTH, COUNT = 3, 20
OFFSET = COUNT - LENGTH  # the position of the first query
SIZE = flash.Size(2, 2, 1, 12, 28, 16)
FIRST_QUERY = SIZE.count - SIZE.length


def decoded(rules: decode.plan.DecodeParams, count: int = COUNT, length: int = LENGTH) -> None:
    """Compare with the definition, with keys at the edges that outweigh all others if they are visible."""
    q, k, v = decode.random(2, 4, length, 16), decode.random(2, 2, count, 16, seed=1), decode.random(2, 2, count, 16)
    with simulated(ONCE) as log:
        got = decode.plan.run(q, {"keys": k, "values": v}, rules)
    assert log.faults == []
    decode.near(got, decode.attention(q, decode.wide(k), decode.wide(v), rules))


@pytest.mark.parametrize("window", [OFFSET, OFFSET + 1, OFFSET + 2, COUNT - 1, COUNT])
def test_a_window_of_a_few_queries_ends_at_the_first_key(window: int) -> None:
    decoded(decode.plan.DecodeParams(0.2, True, mx.array([0, 0]), window=window))


@pytest.mark.parametrize("window", [OFFSET - 3, OFFSET - 2, COUNT - 4, COUNT - 3])
def test_a_window_of_a_few_queries_ends_at_the_padding(window: int) -> None:
    decoded(decode.plan.DecodeParams(0.2, True, mx.array([3, 4]), window=window))


@pytest.mark.parametrize("window", [298, 299, 300])
def test_a_window_of_a_few_queries_ends_between_chunks(window: int) -> None:
    decoded(decode.plan.DecodeParams(0.2, True, mx.array([0, 1]), window=window), count=301)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_of_one_query_covers_all_keys_or_all_but_the_first(causal: bool) -> None:
    for window in (COUNT - 1, COUNT):
        decoded(decode.plan.DecodeParams(0.2, causal, mx.array([0, 0]), window=window), length=1)


@pytest.mark.parametrize("sinks", [False, True], ids=["no sinks", "sinks"])
def test_a_row_with_only_padding_in_its_window_sees_nothing(sinks: bool) -> None:
    sunk = decode.random(4, seed=9) if sinks else None
    decoded(decode.plan.DecodeParams(0.2, True, mx.array([0, COUNT - 1]), window=2, sinks=sunk))


@pytest.mark.parametrize("count", [COUNT, 301], ids=["one chunk", "two chunks"])
def test_each_key_head_has_its_sinks(count: int) -> None:
    decoded(decode.plan.DecodeParams(0.2, True, mx.array([0, 0]), sinks=mx.array([-1.0, 0.5, 3.0, 6.0])), count=count)


def test_a_window_over_packed_keys_ends_at_the_first_one() -> None:
    size = SIZE._replace(dim=64)
    q, k, v = flash.given(size)
    parts, dense = {}, []
    for name, rows in (("k", k), ("v", v)):
        packed = mx.quantize(rows, group_size=32, bits=8)
        parts |= dict(zip((f"{name}_words", f"{name}_scales", f"{name}_biases"), packed, strict=True))
        dense.append(flash.wide(mx.dequantize(*packed, group_size=32, bits=8)))
    for window in (FIRST_QUERY, FIRST_QUERY + 1):
        rules = mask_params([0, 2], window=window)
        few = decode.plan.DecodeParams(rules.scale, True, rules.first, window=window)
        with simulated(ONCE) as log:
            out, _ = flash.plan.run(q, parts, rules, key_bits=8, value_bits=8)
            decoded = decode.plan.run(q, parts, few, key_bits=8, value_bits=8)
        assert log.faults == []
        for got in (out, decoded):
            flash.near(got, flash.attention(q, *dense, rules).out)


def prefilled(rules: flash.plan.FlashParams, size: flash.Size = SIZE) -> None:
    flash.forward_is_right(size, rules, how=ONCE)
    flash.gradients_are_right(size, rules, how=ONCE)


def mask_params(first: list[int], **options: Any) -> flash.plan.FlashParams:
    return flash.plan.FlashParams(0.2, options.pop("causal", True), mx.array(first), **options)


@pytest.mark.parametrize("first", [[0, 0], [3, 4]], ids=["no padding", "padding"])
@pytest.mark.parametrize("from_edge", [0, 1, 2, SIZE.length - 1])
def test_a_window_of_many_queries_ends_at_the_first_key(from_edge: int, first: list[int]) -> None:
    prefilled(mask_params(first, window=FIRST_QUERY - first[0] + from_edge))


@pytest.mark.parametrize("from_edge", [0, 1, 2, SIZE.length - 1])
def test_a_window_both_ways_ends_at_the_last_key(from_edge: int) -> None:
    prefilled(mask_params([0, 0], window=from_edge + 1, causal=False))


@pytest.mark.parametrize("chunk", [FIRST_QUERY, FIRST_QUERY + 1, SIZE.count - 1])
@pytest.mark.parametrize("first", [[0, 0], [1, -2]], ids=["from the first key", "from elsewhere"])
def test_a_chunk_begins_between_two_queries(first: list[int], chunk: int) -> None:
    prefilled(mask_params(first, chunk=chunk))


@pytest.mark.parametrize("window", [FIRST_QUERY - 5, FIRST_QUERY - 4, FIRST_QUERY - 3])
def test_a_window_reaches_beyond_a_chunk_or_ends_in_it(window: int) -> None:
    prefilled(mask_params([0, 2], chunk=FIRST_QUERY - 4, window=window))


def test_each_row_of_a_batch_has_its_segments() -> None:
    ids = [[0] * 10 + [1] * 18, [0] * FIRST_QUERY + [2] * 5 + [7] * 7]
    for window in (0, FIRST_QUERY - 10 + 1):
        prefilled(mask_params([0, 0], segments=mx.array(ids, mx.int32), window=window))


def test_each_head_has_its_sink() -> None:
    prefilled(mask_params([0, 0], sinks=mx.array([-1.0, 0.5, 3.0, 6.0])), SIZE._replace(heads=4, kv_heads=2))


def test_the_definition_counts_the_first_key_where_it_is_visible() -> None:
    """Of the definition: if only one key has weight, a row gives that key's value or 0."""
    seen = flash.seen(SIZE, mask_params([0, 0], window=FIRST_QUERY + 1))
    assert seen[0, 0, :, 0].tolist() == [True] + [False] * (SIZE.length - 1)
    assert np.array_equal(seen[0, 0, 0], np.arange(SIZE.count) <= FIRST_QUERY)

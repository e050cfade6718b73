from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macllm.generation.prefix import PrefixCache, common_prefix
from tests.generation.generate_fakes import FakeCache


def filled(tokens: list[int], can_cut: bool = True) -> FakeCache:
    cache = FakeCache(can_cut)
    cache.tokens = mx.array(tokens, dtype=mx.int32)
    return cache


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_the_longest_common_prefix_short_of_the_last_prompt_token_is_reused(held: list[int], prompt: list[int]) -> None:
    prefix = PrefixCache()
    prefix.release(held, filled(held))
    cache, reused = prefix.acquire(prompt, None, FakeCache)
    assert reused == min(common_prefix(held, prompt), len(prompt) - 1)
    assert cache.length == reused
    assert cache.tokens.tolist() == prompt[:reused]


def test_a_cache_that_cannot_be_trimmed_is_reused_only_whole() -> None:
    prefix = PrefixCache()
    prefix.release([1, 2, 3], filled([1, 2, 3], can_cut=False))
    assert prefix.acquire([1, 2, 3, 4], None, FakeCache)[1] == 3
    prefix.release([1, 2, 3], filled([1, 2, 3], can_cut=False))
    cache, reused = prefix.acquire([1, 2, 4], None, FakeCache)
    assert (cache.length, reused) == (0, 0)


@pytest.mark.parametrize("second", [(None, 4), (128, None)])
def test_a_cache_of_other_options_is_not_reused(second: tuple) -> None:
    prefix = PrefixCache()
    _, _ = prefix.acquire([1, 2], (None, None), FakeCache)
    prefix.release([1, 2], filled([1, 2]))
    assert prefix.acquire([1, 2, 3], second, FakeCache)[1] == 0


def test_an_acquired_cache_is_not_handed_out_again() -> None:
    prefix = PrefixCache()
    prefix.release([1, 2], filled([1, 2]))
    prefix.acquire([1, 2, 3], None, FakeCache)
    assert prefix.tokens == ()
    assert prefix.acquire([1, 2, 3], None, FakeCache)[1] == 0


def test_only_tokens_in_the_cache_are_remembered() -> None:
    prefix = PrefixCache()
    prefix.release([1, 2, 3, 4], filled([1, 2]))
    assert prefix.tokens == (1, 2)

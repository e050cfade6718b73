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


BRANCH = [*range(200)]
EDITED = [*range(50), *range(300, 400)]
TOKEN_BYTES = 4  # of a fake cache


def taken(prefix: PrefixCache, prompt: list[int], kind: object = None) -> tuple[FakeCache, int]:
    """The cache for a prompt, as a completion without new tokens leaves it."""
    cache, reused = prefix.acquire(prompt, kind, FakeCache)
    assert isinstance(cache, FakeCache)
    cache.tokens = mx.array(prompt, dtype=mx.int32)
    prefix.release(prompt, cache)
    return cache, reused


def test_an_edit_keeps_the_long_branch_and_a_return_to_it_reuses_it() -> None:
    prefix = PrefixCache(10_000)
    taken(prefix, BRANCH)
    assert taken(prefix, EDITED)[1] == 50
    assert prefix.sequences == [tuple(BRANCH), tuple(EDITED)]
    assert taken(prefix, [*BRANCH, 1, 2])[1] == 200
    assert taken(prefix, [*EDITED, 1, 2])[1] == 150
    assert prefix.sequences == [(*BRANCH, 1, 2), (*EDITED, 1, 2)]


def test_turn_after_turn_one_cache_grows_without_a_copy() -> None:
    prefix, prompt = PrefixCache(10_000), [*range(100)]
    first, _ = taken(prefix, prompt)
    for turn in range(4):
        prompt = [*prompt, *range(100 * turn, 100 * turn + 100)]
        cache, reused = taken(prefix, prompt)
        assert cache is first
        assert reused == len(prompt) - 100
        assert prefix.sequences == [tuple(prompt)]


def test_a_short_rest_is_cut_off_and_not_copied_for() -> None:
    """A rest of few tokens, and one that is short for its prefix."""
    for size, rest in ((100, 63), (2000, 200)):
        prefix = PrefixCache(100_000)
        first, _ = taken(prefix, [*range(size + rest)])
        cache, reused = taken(prefix, [*range(size), 7, 7])
        assert (cache is first, reused) == (True, size)
        assert len(prefix.sequences) == 1


def test_a_fork_that_the_longer_cache_can_give_again_is_not_kept() -> None:
    """A completion that was cancelled before its first new token."""
    prefix = PrefixCache(10_000)
    taken(prefix, BRANCH)
    taken(prefix, EDITED)
    cache, reused = prefix.acquire([*BRANCH[:80], 9], None, FakeCache)
    assert reused == 80
    prefix.release([*BRANCH[:80], 9], cache)
    assert prefix.sequences == [tuple(EDITED), tuple(BRANCH)]


def test_a_cache_that_the_newest_can_give_again_is_dropped() -> None:
    """A regenerated answer that becomes the former one and then goes on."""
    prefix = PrefixCache(10_000)
    taken(prefix, BRANCH)
    prefix.acquire(BRANCH[:100], None, FakeCache)
    prefix.release([*BRANCH, 7, 8], filled([*BRANCH, 7, 8]))
    assert prefix.sequences == [(*BRANCH, 7, 8)]


def test_the_longest_prefix_among_the_branches_is_reused() -> None:
    prefix = PrefixCache(10_000)
    for branch in (BRANCH, EDITED, [*range(120), *range(500, 600)]):
        taken(prefix, branch)
    assert taken(prefix, [*BRANCH[:180], 9])[1] == 180
    assert taken(prefix, [*range(120), 500, 501, 9])[1] == 122
    assert taken(prefix, [*range(50), 300, 9])[1] == 51


def test_two_conversations_that_take_turns_both_keep_their_caches() -> None:
    prefix, prompts = PrefixCache(100_000), [[1, *range(100)], [2, *range(100)]]
    for turn in range(3):
        for prompt in prompts:
            assert taken(prefix, prompt)[1] == (0 if turn == 0 else len(prompt) - 3)
            prompt.extend([turn, 7, 7])


def test_the_caches_used_longest_ago_go_first_and_the_newest_stays_beyond_the_capacity() -> None:
    branches = [[n, *range(100)] for n in range(4)]
    prefix = PrefixCache(2 * 101 * TOKEN_BYTES)
    for branch in branches[:3]:
        taken(prefix, branch)
    assert len(prefix.sequences) == 3  # two within the capacity, and the newest
    taken(prefix, [*branches[0], 1])
    taken(prefix, branches[3])
    assert [sequence[0] for sequence in prefix.sequences] == [2, 0, 3][-len(prefix.sequences) :]
    assert prefix.nbytes <= (2 * 101 + 101) * TOKEN_BYTES
    taken(prefix, [5, *range(1000)])
    taken(prefix, [6, *range(10)])
    assert [sequence[0] for sequence in prefix.sequences] == [6]


def test_the_others_are_within_the_capacity_while_a_completion_runs() -> None:
    prefix = PrefixCache(250 * TOKEN_BYTES)
    for n in range(5):
        taken(prefix, [n, *range(99)])
    for prompt in ([9, 9], [2, *range(99), 1], [4, *range(50)]):
        prefix.acquire(prompt, None, FakeCache)
        assert prefix.nbytes <= 250 * TOKEN_BYTES
        prefix.release(prompt, filled(prompt))


def test_without_a_capacity_only_the_newest_cache_is_kept_and_never_forked() -> None:
    prefix = PrefixCache(0)
    first, _ = taken(prefix, BRANCH)
    cache, reused = taken(prefix, EDITED)
    assert (cache is first, reused) == (True, 50)
    assert prefix.sequences == [tuple(EDITED)]
    taken(prefix, [5, 6])
    assert prefix.sequences == [(5, 6)]


def test_branches_of_another_kind_are_neither_reused_nor_dropped() -> None:
    prefix = PrefixCache(10_000)
    taken(prefix, BRANCH, "adapter")
    assert taken(prefix, [*BRANCH, 1], "base")[1] == 0
    assert taken(prefix, [*BRANCH, 1], "adapter")[1] == 200

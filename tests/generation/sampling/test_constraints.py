"""Constraints on the next token, by hand; test_constraints_parity.py compares with transformers."""

from __future__ import annotations

import math

import mlx.core as mx
import pytest

from macllm.generation.request import SamplingParams
from macllm.generation.sampling.constraints import Bounds, Constraints, biases
from macllm.generation.sampling.sampler import Sampler

SIZE = 8
ENDS = frozenset({0})


def banned(params: SamplingParams, history: list[int], bounds: Bounds | None = None) -> set[int]:
    """Tokens that cannot follow `history`."""
    logits = Constraints(params, history, bounds or Bounds(ends=ENDS), SIZE)(mx.zeros(SIZE))
    return {token for token, logit in enumerate(logits.tolist()) if logit == -math.inf}


@pytest.mark.parametrize(
    ("n", "history", "expected"),
    [
        (1, [], set()),
        (1, [3, 5, 3], {3, 5}),
        (2, [3], set()),
        (2, [3, 5, 3], {5}),
        (2, [3, 5, 3, 6, 3], {5, 6}),
        (3, [1, 2, 3, 1, 2], {3}),
        (3, [1, 2, 3, 2, 2], set()),
        (3, [4, 4, 4], {4}),
        (9, [1, 2, 3], set()),
    ],
)
def test_tokens_that_would_repeat_an_ngram_are_banned(n: int, history: list[int], expected: set[int]) -> None:
    assert banned(SamplingParams(no_repeat_ngram_size=n), history) == expected


def test_tokens_that_would_repeat_an_ngram_of_the_source_are_banned() -> None:
    bounds = Bounds(prompt=[1, 2, 3, 2, 4])
    assert banned(SamplingParams(encoder_no_repeat_ngram_size=2), [7, 2], bounds) == {3, 4}
    assert banned(SamplingParams(encoder_no_repeat_ngram_size=1), [7], bounds) == {1, 2, 3, 4}
    assert banned(SamplingParams(encoder_no_repeat_ngram_size=3), [7], bounds) == set()


def test_the_last_token_of_a_bad_word_is_banned_after_its_other_tokens() -> None:
    params = SamplingParams(bad_words_ids=((5, 6), (5, 7), (1, 5, 2), (3,)))
    assert banned(params, [1, 5]) == {6, 7, 2}
    assert banned(params, [5]) == {6, 7}
    assert banned(params, [5, 1]) == set()
    assert biases(params, Bounds(), SIZE) == [(3, -math.inf)]


def test_sequence_biases_add_up() -> None:
    params = SamplingParams(sequence_bias=(((1, 2), 0.5), ((3, 1, 2), 0.25), ((2,), 4.0)), logit_bias=((2, 8.0),))
    assert Constraints(params, [3, 1], Bounds(), SIZE)(mx.zeros(SIZE)).tolist() == [0, 0, 0.75, 0, 0, 0, 0, 0]
    assert biases(params, Bounds(), SIZE) == [(2, 8.0), (2, 4.0)]


@pytest.mark.parametrize(
    ("params", "length", "given", "expected"),
    [
        (SamplingParams(min_length=4), 3, 0, ENDS),
        (SamplingParams(min_length=4), 4, 0, set()),
        (SamplingParams(min_new_tokens=1), 4, 0, ENDS),
        (SamplingParams(min_new_tokens=1), 2, 1, set()),
        (SamplingParams(min_length=9, min_new_tokens=1), 4, 0, ENDS),
        (SamplingParams(min_length=9, min_new_tokens=1), 4, 1, set()),
    ],
)
def test_end_tokens_are_banned_before_the_minimum_length(
    params: SamplingParams, length: int, given: int, expected: set
) -> None:
    assert banned(params, [1] * length, Bounds(ends=ENDS, given=given)) == expected


def test_min_new_tokens_is_counted_from_the_prompt() -> None:
    sampler = Sampler(SamplingParams(temperature=0, min_new_tokens=3), 0, [1, 1], SIZE, Bounds(ends=ENDS))
    end_is_likeliest = mx.array([9.0, 0, 0, 5, 0, 0, 0, 0])
    assert [sampler(end_is_likeliest, step).item() for step in range(5)] == [3, 3, 3, 0, 0]


def test_the_last_token_is_the_forced_end_token() -> None:
    params = SamplingParams(temperature=0, forced_eos_token_id=(0,), repetition_penalty=3.0)
    sampler = Sampler(params, 0, [0, 1], SIZE, Bounds(ends=ENDS, max_tokens=3))
    assert [sampler(mx.arange(8) * 1.0, step).item() for step in range(3)] == [7, 6, 0]


def test_begin_suppress_tokens_ban_only_the_first_token() -> None:
    params = SamplingParams(temperature=0, begin_suppress_tokens=(7, 6, 99))
    sampler = Sampler(params, 0, [1, 2], SIZE)
    assert [sampler(mx.arange(8) * 1.0, step).item() for step in range(2)] == [5, 7]


def test_tokens_beyond_the_vocabulary_are_ignored() -> None:
    params = SamplingParams(temperature=0, suppress_tokens=(7, 4096), logit_bias=((9999, 5.0),))
    assert Sampler(params, 0, [], SIZE)(mx.arange(8) * 1.0, 0).item() == 6


def test_draws_obey_the_constraints() -> None:
    params = SamplingParams(no_repeat_ngram_size=1, top_p=0.95, min_p=0.01)
    sampler = Sampler(params, 3, [2], SIZE)
    drawn = [sampler(mx.zeros(SIZE), step).item() for step in range(7)]
    assert sorted(drawn) == [0, 1, 3, 4, 5, 6, 7]


def test_fixed_bans_and_penalties_need_no_constraints() -> None:
    plain = SamplingParams(temperature=0.7, repetition_penalty=1.2, suppress_tokens=(1,), bad_words_ids=((3,),))
    assert not Constraints.needed(plain)

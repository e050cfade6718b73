from __future__ import annotations

import time

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macllm.ops.draw_params import DrawParams
from macllm.ops.penalties import CountPenalties, DryPenalty
from tests.ops import literal_sampling as reference

V = 7
LOGITS = np.array([3.0, -2.0, 0.0, 1.5, -0.5, 8.0, 2.5], dtype=np.float32)
tokens = st.lists(st.integers(0, V - 1), max_size=25)


@settings(max_examples=60, deadline=None)
@given(
    prompt=tokens,
    drawn=tokens,
    window=st.integers(0, 9),
    repetition=st.sampled_from([0.5, 1.0, 1.3]),
    presence=st.sampled_from([-1.0, 0.0, 0.7]),
    frequency=st.sampled_from([0.0, 0.4]),
)
def test_count_penalties_equal_a_recount_of_the_window(prompt, drawn, window, repetition, presence, frequency) -> None:
    params = DrawParams(
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        penalty_window=window,
    )
    penalty = CountPenalties(params, prompt, V)
    for n in range(len(drawn) + 1):
        expected = reference.counted(
            LOGITS, prompt + drawn[:n], repetition=repetition, presence=presence, frequency=frequency, window=window
        )
        np.testing.assert_allclose(np.array(penalty(mx.array(LOGITS))), expected, rtol=1e-5, atol=1e-5)
        if n < len(drawn):
            penalty.add(mx.array(drawn[n]))


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 2), max_size=25),
    drawn=st.lists(st.integers(0, 2), max_size=12),
    window=st.integers(0, 9),
    allowed=st.integers(1, 4),
    breakers=st.sampled_from([(), (2,), (0, 2)]),
    base=st.sampled_from([1.0, 1.75, 3.0]),
)
def test_dry_equals_a_literal_search_for_repeats(prompt, drawn, window, allowed, breakers, base) -> None:
    params = DrawParams(
        dry_multiplier=0.8, dry_base=base, dry_allowed_length=allowed, dry_window=window, dry_breakers=breakers
    )
    penalty = DryPenalty(params, prompt, V)
    for n in range(len(drawn) + 1):
        expected = reference.dry(
            LOGITS, prompt + drawn[:n], multiplier=0.8, base=base, allowed=allowed, window=window, breakers=breakers
        )
        np.testing.assert_allclose(np.array(penalty(mx.array(LOGITS))), expected, rtol=1e-4, atol=1e-5)
        if n < len(drawn):
            penalty.add(mx.array(drawn[n]))


def test_dry_stays_finite_for_a_repeat_of_thousands_of_tokens() -> None:
    params = DrawParams(dry_multiplier=5.0, dry_base=100.0)
    penalty = DryPenalty(params, [1, 2] * 3000, V)
    penalized = np.array(penalty(mx.array(LOGITS)))
    assert np.isfinite(penalized).all()
    assert penalized[1] < -1e20
    assert (penalized[[0, 2, 3, 4, 5, 6]] == LOGITS[[0, 2, 3, 4, 5, 6]]).all()


def test_a_long_prompt_is_searched_in_linear_time() -> None:
    """A quadratic search would take minutes; its worst case is one token repeated."""
    began = time.process_time()
    penalty = DryPenalty(DrawParams(dry_multiplier=1.0, dry_base=1.00001), [3] * 100_000, V)
    penalized = np.array(penalty(mx.array(LOGITS)))
    assert time.process_time() - began < 10
    # the history without its last token is the repeat: 99,999 tokens, two of which are allowed
    expected = LOGITS - np.eye(V)[3] * 1.00001 ** (99_999 - 2)
    np.testing.assert_allclose(penalized, expected, rtol=5e-3)


@pytest.mark.parametrize("token", [0, V - 1])
def test_penalties_accept_lazy_tokens(token: int) -> None:
    params = DrawParams(frequency_penalty=1.0, dry_multiplier=1.0, penalty_window=1)
    lazy = mx.argmax(mx.eye(V)[token])
    counts, dry = CountPenalties(params, (), V), DryPenalty(params, (), V)
    for _ in range(3):
        counts.add(lazy)
        dry.add(lazy)
    expected = LOGITS.copy()
    expected[token] -= 1.0
    np.testing.assert_allclose(np.array(counts(mx.array(LOGITS))), expected)
    assert np.array(dry(mx.array(LOGITS)))[token] == LOGITS[token] - 1.0  # repeat of two, two allowed


@pytest.mark.parametrize("number", [2**31, 2**32, 2**63, 10**30])
@pytest.mark.parametrize("name", ["penalty_window", "dry_window", "dry_allowed_length"])
def test_windows_beyond_the_history_act_like_the_whole_history(name: str, number: int) -> None:
    outcomes = []
    for value in (1000, number):
        params = DrawParams(dry_multiplier=1.0, presence_penalty=0.5, **{name: value})
        both = CountPenalties(params, [1, 2, 1, 2, 1], V), DryPenalty(params, [1, 2, 1, 2, 1], V)
        for penalty in both:
            penalty.add(mx.array(2, dtype=mx.uint32))
        outcomes.append([np.array(penalty(mx.array(LOGITS))) for penalty in both])
    np.testing.assert_array_equal(outcomes[0], outcomes[1])

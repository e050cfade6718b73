"""Masked LM beats the best unigram model, and letters are sorted: short runs of the scripts."""

from __future__ import annotations

import pytest

from tests.learning import pretraining, sorting

pytestmark = pytest.mark.slow


def test_masked_lm_beats_the_best_unigram_model() -> None:
    found = pretraining.learned("mlm", seed=0, iters=500)
    assert found["loss"] < found["unigram_entropy"]


@pytest.mark.parametrize("objective", sorting.CONFIGS)
def test_letters_that_never_occurred_together_are_sorted(objective: str) -> None:
    found = sorting.measured(objective, seed=0)
    assert found["before"] <= 2 * sorting.CHANCE
    assert found["after"] >= 0.95

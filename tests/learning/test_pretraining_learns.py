"""Masked LM beats the best unigram model: a short run of the script beside this file."""

from __future__ import annotations

import pytest

from tests.learning import pretraining


@pytest.mark.slow
def test_masked_lm_beats_the_best_unigram_model() -> None:
    found = pretraining.learned("mlm", seed=0, iters=250)
    assert found["loss"] < found["unigram_entropy"]

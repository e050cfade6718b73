"""The line fitted to peaks of memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bench_training_memory import fitted

from tests.tables.benches import OFF_A_LINE

LENGTHS = [512, 1024, 2048, 4096, 8192]


def test_linear_growth_has_no_residual_and_quadratic_growth_a_large_one() -> None:
    line = fitted(LENGTHS, [300 + 0.5 * length for length in LENGTHS])
    assert line == pytest.approx({"base": 300, "per_1024_tokens": 512, "residual": 0}, abs=1e-6)
    assert fitted(LENGTHS, with_attention([300 + 0.5 * length for length in LENGTHS]))["residual"] > 0.2


@pytest.mark.parametrize("peaks", [[768, 837, 922, 1199, 1856], [1346, 1504, 1663, 1823, 2606]])
def test_a_quarter_of_one_matrix_of_scores_is_off_the_line(peaks: list[float]) -> None:
    """Measured peaks of an adapter and of all weights, and with the scores of nine heads kept."""
    assert fitted(LENGTHS, peaks)["residual"] < OFF_A_LINE
    assert fitted(LENGTHS, with_attention(peaks, 0.25))["residual"] > OFF_A_LINE


def with_attention(peaks: list[float], share: float = 1.0) -> list[float]:
    return [peak + share * 9 * 4 * length**2 / 1e6 for length, peak in zip(LENGTHS, peaks, strict=True)]

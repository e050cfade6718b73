"""The line fitted to peaks of memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bench_training_memory import fitted

LENGTHS = [512, 1024, 2048, 4096, 8192]


def test_linear_growth_has_no_residual_and_quadratic_growth_a_large_one() -> None:
    line = fitted(LENGTHS, [300 + 0.5 * length for length in LENGTHS])
    assert line == pytest.approx({"base": 300, "per_1024_tokens": 512, "residual": 0}, abs=1e-6)
    attention = [300 + 0.5 * length + 36 * length**2 / 1e6 for length in LENGTHS]
    assert fitted(LENGTHS, attention)["residual"] > 0.2

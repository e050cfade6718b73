"""Scaling laws against published numbers and numeric minima."""

from __future__ import annotations

import numpy as np
import pytest

from macllm.evaluate.scaling.laws import PUBLISHED, ChinchillaLaw, KaplanLaw

CHINCHILLA_FLOPS = 5.76e23
# Exponent of N*, N* and D* at that budget, and the loss of Chinchilla's size: 70e9 parameters, 1.4e12 tokens.
CHINCHILLA = {
    "hoffmann-printed": ("0.4516", "3.219e+10", "2.982e+12", "1.9366"),
    "hoffmann": ("0.4565", "4.031e+10", "2.382e+12", "1.9208"),
    "epoch": ("0.5126", "7.225e+10", "1.329e+12", "1.9739"),
}


@pytest.mark.parametrize("name", CHINCHILLA)
def test_chinchilla_s_budget_has_the_known_size_and_loss(name: str) -> None:
    law = PUBLISHED[name]
    parameters, tokens = law.optimum(CHINCHILLA_FLOPS)
    found = f"{law.exponent:.4f}", f"{parameters:.3e}", f"{tokens:.3e}", f"{law.loss(70e9, 1.4e12):.4f}"
    assert found == CHINCHILLA[name]


def test_kaplan_s_law_gives_the_known_loss() -> None:
    law = PUBLISHED["kaplan"]
    assert law.loss(1.5e9, 2.3e10) == pytest.approx(2.3718, abs=5e-5)
    assert law.loss(8.8e13 / 2, 1e300) == pytest.approx(2**0.076, rel=1e-12)  # L(N) = (N_c / N)^alpha_N
    assert law.loss(1e300, 5.4e13 / 2) == pytest.approx(2**0.095, rel=1e-12)


@pytest.mark.parametrize("flops", [1e15, 5.76e23, 1e27])
@pytest.mark.parametrize("law", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_the_best_size_is_a_numeric_minimum(law: ChinchillaLaw | KaplanLaw, flops: float) -> None:
    parameters, tokens = law.optimum(flops)
    assert 6 * parameters * tokens == pytest.approx(flops, rel=1e-12)
    assert np.log(parameters) == pytest.approx(numeric_minimum(law, flops), abs=1e-6)


def numeric_minimum(law: ChinchillaLaw | KaplanLaw, flops: float) -> float:
    """ln N where the loss's derivative by ln N along 6 N D = `flops` changes its sign, by bisection.

    Central differences in extended precision: the loss itself is flat around its minimum.
    """

    def slope(log_n: float) -> np.longdouble:
        losses = []
        for each in (log_n + 1e-4, log_n - 1e-4):
            parameters = np.exp(np.longdouble(each))
            losses.append(law.loss(parameters, np.longdouble(flops) / 6 / parameters))
        return losses[0] - losses[1]

    low, high = np.log(1e2), np.log(flops / 6 / 1e2)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(low)

"""Fits of scaling laws: constants recovered from synthetic runs, and scipy's minimum beside ours."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest

from macllm.errors import UsageError
from macllm.evaluate.scaling.fits import DELTA, Estimator, Runs, fit
from macllm.evaluate.scaling.frontier import envelope, parabolas
from macllm.evaluate.scaling.laws import PUBLISHED, ChinchillaLaw

LAWS = [("chinchilla", "hoffmann"), ("chinchilla", "epoch"), ("kaplan", "kaplan")]


def grid(name: str, noise: float = 0.0, seed: int = 0) -> Runs:
    """Runs of a published law over sizes and tokens, with log-normal noise of the loss."""
    sizes, tokens = np.meshgrid(np.geomspace(1e7, 1e10, 9), np.geomspace(3e8, 3e11, 10))
    n, d = sizes.ravel(), tokens.ravel()
    random = np.random.default_rng(seed)
    return Runs(n, d, PUBLISHED[name].loss(n, d) * np.exp(noise * random.standard_normal(n.shape)))


def budgets(name: str, noise: float = 0.0) -> Runs:
    """Runs of a published law at ten budgets, nine sizes around the best one at each."""
    law, random, rows = PUBLISHED[name], np.random.default_rng(0), []
    for flops in np.geomspace(1e18, 1e22, 10):
        best, _ = law.optimum(flops)
        rows += [(best * ratio, flops / 6 / (best * ratio)) for ratio in np.geomspace(0.5, 2, 9)]
    n, d = np.array(rows).T
    return Runs(n, d, law.loss(n, d) * np.exp(noise * random.standard_normal(n.shape)))


@pytest.mark.parametrize("estimator", ["huber", "absolute"])
@pytest.mark.parametrize(("law", "name"), LAWS)
def test_a_law_s_constants_are_recovered_from_its_runs(law: str, name: str, estimator: Estimator) -> None:
    assert astuple(fit(law, grid(name), estimator).law) == pytest.approx(astuple(PUBLISHED[name]), rel=1e-4)


@pytest.mark.parametrize(("law", "name"), LAWS)
def test_intervals_of_noisy_runs_hold_the_constants(law: str, name: str) -> None:
    found = fit(law, grid(name, noise=0.01), samples=100)
    for field, value in zip(PUBLISHED[name].__dataclass_fields__, astuple(PUBLISHED[name]), strict=True):
        interval = found.interval(lambda each, field=field: getattr(each, field), level=0.99)
        assert interval is not None
        assert interval[0] <= value <= interval[1], field
        assert interval[1] - interval[0] > 1e-3 * value


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_as_good_as_scipy_s(seed: int) -> None:
    """Nelder-Mead of the summed objective from the fit itself and from the true constants, in float64."""
    from scipy.optimize import minimize

    runs = grid("epoch", noise=0.01, seed=seed)
    n, d, target = (np.log(each) for each in runs)

    def objective(theta: np.ndarray) -> float:
        a, b, e, alpha, beta = theta
        terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
        size = np.abs(np.log(np.exp(terms - terms.max(0)).sum(0)) + terms.max(0) - target)
        return float(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum()) * 1e3

    def theta(law: Any) -> np.ndarray:
        return np.array([np.log(law.a), np.log(law.b), np.log(law.e), law.alpha, law.beta])

    found = fit("chinchilla", runs)
    assert isinstance(found.law, ChinchillaLaw)
    ours = objective(theta(found.law))
    assert found.objective * 1e3 == pytest.approx(ours, rel=1e-9)
    options = {"maxiter": 20000, "maxfev": 20000, "xatol": 1e-10, "fatol": 1e-15}
    for start in (theta(found.law), theta(PUBLISHED["epoch"])):
        best = minimize(objective, start, method="Nelder-Mead", options=options)
        assert ours <= best.fun * (1 + 1e-7)


@pytest.mark.parametrize("name", ["hoffmann", "epoch"])
def test_frontiers_follow_the_law_that_made_the_runs(name: str) -> None:
    law = PUBLISHED[name]
    second = parabolas(budgets(name))
    assert len(second.flops) == 10
    assert second.exponent == pytest.approx(law.exponent, abs=2e-3)
    assert second.optimum(1e20)[0] == pytest.approx(law.optimum(1e20)[0], rel=0.02)
    curves = grid(name)
    dense = Runs(*(np.repeat(each, 50) for each in curves))
    tokens = dense.tokens * np.tile(np.geomspace(0.1, 1, 50), len(curves.loss))
    first = envelope(Runs(dense.parameters, tokens, law.loss(dense.parameters, tokens)))
    assert first.exponent == pytest.approx(law.exponent, abs=0.05)


def test_a_bad_outlier_moves_the_huber_fit_little() -> None:
    runs = grid("epoch", noise=0.001)
    loss = runs.loss.copy()
    loss[7] *= 2
    found = fit("chinchilla", runs._replace(loss=loss)).law
    assert astuple(found) == pytest.approx(astuple(fit("chinchilla", runs).law), rel=0.02)


def test_too_few_runs_or_budgets_are_refused() -> None:
    runs = grid("epoch")
    with pytest.raises(UsageError, match="5 runs are too few"):
        fit("chinchilla", runs.taken(np.arange(5)))
    same = runs.taken(np.zeros(20, dtype=int))
    with pytest.raises(UsageError, match="fewer than 3 sizes"):
        fit("chinchilla", same)
    with pytest.raises(UsageError, match="fewer than 3 numbers of tokens"):
        fit("kaplan", same._replace(parameters=np.geomspace(1e6, 1e9, 20)))
    for name in ("chinchilla", "kaplan"):
        with pytest.raises(UsageError, match=f"the {name} law does not fit"):
            fit(name, runs._replace(loss=runs.loss[::-1]))
    with pytest.raises(UsageError, match="fewer than two budgets"):
        parabolas(runs.taken(np.arange(2)))
    with pytest.raises(UsageError, match="fewer than two budgets"):
        envelope(runs.taken(np.arange(1)))

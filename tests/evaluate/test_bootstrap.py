"""Bootstrap intervals beside scipy's on the same resamples, simulated coverage, Newcombe's table."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest

from macllm.errors import MacllmError
from macllm.evaluate import bootstrap
from macllm.evaluate.bootstrap import Interval, Resampling

FEW = Resampling(resamples=1000)
Draw = Callable[[np.random.Generator, int], np.ndarray]


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def documents(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes and nats under two models of documents; the second model needs 2% more nats for each byte."""
    size = np.ceil(random.lognormal(5, 0.5, n))
    rate = random.gamma(20, 1 / 20, n)
    return size, size * rate, size * rate * random.normal(1.02, 0.05, n)


def bca_by_loops(rows: np.ndarray, statistic: Callable[[np.ndarray], float], replicates: np.ndarray) -> list[float]:
    """BCa's interval by Efron and Tibshirani 1993, equations 14.9 to 14.15, one unit at a time."""
    normal, value = NormalDist(), statistic(rows)
    bias = normal.inv_cdf(sum((each < value) + (each == value) / 2 for each in replicates.tolist()) / len(replicates))
    left_out = [statistic(np.delete(rows, at, axis=0)) for at in range(len(rows))]
    center = sum(left_out) / len(left_out)
    cubes, squares = (sum((center - each) ** power for each in left_out) for power in (3, 2))
    acceleration = cubes / (6 * squares**1.5)
    found = []
    for level in (0.025, 0.975):
        z = bias + normal.inv_cdf(level)
        found.append(float(np.quantile(replicates, normal.cdf(bias + z / (1 - acceleration * z)))))
    return found


@pytest.mark.parametrize("n", [100, 237])
def test_bca_follows_its_equations_for_means_and_ratios(n: int) -> None:
    random = np.random.default_rng(n)
    values = random.exponential(size=n)
    size, before, after = documents(random, n)
    cases: list[tuple[Interval, np.ndarray, Callable[[np.ndarray], float], bootstrap.Statistic]] = [
        (bootstrap.mean(values), values[:, None], lambda rows: rows.mean(), lambda means: means[0]),
        (
            bootstrap.ratio(before, size),
            np.stack([size, before], 1),
            lambda rows: rows[:, 1].sum() / rows[:, 0].sum(),
            lambda means: means[1] / means[0],
        ),
        (
            bootstrap.relative_change(before, after),
            np.stack([before, after], 1),
            lambda rows: rows[:, 1].sum() / rows[:, 0].sum() - 1,
            lambda means: means[1] / means[0] - 1,
        ),
    ]
    for interval, rows, by_rows, by_means in cases:
        assert interval.method == "BCa"
        assert interval.value == pytest.approx(by_rows(rows), rel=1e-12)
        replicates = bootstrap.resampled(np.ascontiguousarray(rows.T), by_means)
        assert ends(interval) == pytest.approx(bca_by_loops(rows, by_rows, replicates), rel=1e-9)


def test_resamples_of_four_units_have_the_distribution_of_all_256() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0])
    found = bootstrap.resampled(values[None], lambda means: means[0], Resampling(resamples=200_000))
    means = [sum(map(Fraction, each)) / 4 for each in product((1, 2, 4, 8), repeat=4)]
    for mean in set(means):
        share = means.count(mean) / len(means)
        error = math.sqrt(share * (1 - share) / len(found))
        assert abs(float((found == float(mean)).mean()) - share) < 4.5 * error


@pytest.mark.parametrize(("n", "quantile"), [(10, 2.2621572), (99, 1.9844675)])
def test_intervals_of_few_units_are_percentiles_widened_as_student_s(n: int, quantile: float) -> None:
    """Levels by Hesterberg 2015, section 5.3, from a table of Student's t."""
    values = np.random.default_rng(n).normal(3, 1, n)
    found = bootstrap.mean(values)
    assert found.method == "percentile"
    replicates = bootstrap.resampled(values[None], lambda means: means[0])
    plain = np.quantile(replicates, [0.025, 0.975])
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * quantile)
    assert ends(found) == pytest.approx(tuple(np.quantile(replicates, [tail, 1 - tail])), rel=1e-3)
    student = quantile * values.std(ddof=1) / math.sqrt(n)
    assert found.low < plain[0] < plain[1] < found.high
    assert ends(found) == pytest.approx((values.mean() - student, values.mean() + student), abs=0.25 * student)


@pytest.mark.parametrize(("freedom", "expected"), [(5, 2.5705818), (10, 2.2281389), (30, 2.0422725), (98, 1.9844675)])
def test_student_s_quantile_is_the_table_s(freedom: int, expected: float) -> None:
    assert bootstrap.student(freedom, 0.975) == pytest.approx(expected, rel=2e-4)


SKEWED: Draw = lambda random, n: random.exponential(size=n)  # noqa: E731
NORMAL: Draw = lambda random, n: random.normal(1, 1, n)  # noqa: E731


@pytest.mark.parametrize(
    ("draw", "n", "loss"), [(NORMAL, 8, 0.03), (NORMAL, 50, 0.0), (NORMAL, 100, 0.01), (SKEWED, 200, 0.015)]
)
def test_intervals_cover_the_mean_in_95_percent_of_samples(draw: Draw, n: int, loss: float) -> None:
    """Within three Monte Carlo errors; `loss` is the bootstrap's known deficit of small or skewed samples."""
    random, trials = np.random.default_rng(n), 600
    found = [bootstrap.mean(draw(random, n), Resampling(600, seed)) for seed in range(trials)]
    covered = sum(each.low <= 1 <= each.high for each in found) / trials
    error = math.sqrt(0.95 * 0.05 / trials)
    assert 0.95 - loss - 3 * error <= covered <= 0.95 + 3 * error
    below, above = sum(each.high < 1 for each in found) / trials, sum(each.low > 1 for each in found) / trials
    assert max(below, above) < 0.05 + loss


def test_intervals_cover_the_change_of_bits_per_byte_in_95_percent_of_samples() -> None:
    random, trials = np.random.default_rng(1), 600
    hits = 0
    for seed in range(trials):
        _, before, after = documents(random, 120)
        found = bootstrap.relative_change(before, after, Resampling(600, seed))
        hits += found.low <= 0.02 <= found.high
    assert abs(hits / trials - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / trials) + 0.01


def test_paired_intervals_are_narrower_than_those_of_unpaired_documents() -> None:
    size, before, after = documents(np.random.default_rng(2), 150)
    change, alone = bootstrap.relative_change(before, after), bootstrap.ratio(after, size)
    assert (change.high - change.low) < 0.35 * (alone.high - alone.low) / alone.value


def test_a_ratio_weighs_documents_by_their_denominators() -> None:
    found = bootstrap.ratio(np.array([1.0] * 7 + [30.0]), np.array([1.0] * 7 + [10.0]))
    assert found.value == pytest.approx(37 / 17)
    change = bootstrap.ratio_difference(np.array([1.0] * 8), np.array([2.0] * 7 + [9.0]), np.array([1.0] * 7 + [3.0]))
    assert change.value == pytest.approx((7 + 8) / 10)


def test_units_without_a_denominator_are_left_out() -> None:
    random = np.random.default_rng(3)
    size, before, _ = documents(random, 40)
    found = bootstrap.ratio(np.append(before, 0.0), np.append(size, 0.0))
    assert found == bootstrap.ratio(before, size)
    assert found.n == 40


def test_the_seed_decides_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap.mean(values) == bootstrap.mean(values)
    assert bootstrap.mean(values, Resampling(seed=1)) != bootstrap.mean(values)
    assert bootstrap.mean(values, Resampling(level=0.5)).high < bootstrap.mean(values).high


def test_more_draws_than_fit_into_memory_at_once_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(1, 50))
    monkeypatch.setattr(bootstrap, "_DRAWS", 7 * 50)
    found = bootstrap.resampled(values, lambda means: means[0], Resampling(resamples=1000))
    assert found.shape == (1000,)
    assert len(np.unique(found)) == 1000
    assert found.std() == pytest.approx(values.std() / math.sqrt(50), rel=0.1)


@pytest.mark.parametrize("n", [1, 5])
def test_fewer_than_six_units_have_no_interval(n: int) -> None:
    found = bootstrap.mean(np.arange(n) + 1.0)
    assert found == Interval((n + 1) / 2, -math.inf, math.inf, n, "none")
    assert found.as_dict() == {"value": (n + 1) / 2, "low": None, "high": None, "n": n, "method": "none"}


@pytest.mark.parametrize("n", [6, 100])
def test_equal_values_have_an_interval_without_width(n: int) -> None:
    found = bootstrap.mean(np.full(n, 0.1))
    assert ends(found) == (found.value, found.value)


def test_a_change_from_a_base_that_may_be_0_has_no_interval() -> None:
    before, after = np.array([1.0] + [0.0] * 9), np.array([1.0] * 10)
    found = bootstrap.relative_change(before, after)
    assert (found.value, found.method) == (9.0, "none")
    with pytest.raises(MacllmError, match="there is no relative change"):
        bootstrap.relative_change(np.zeros(10), after)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_s_interval_is_newcombe_s(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, table I, method 3."""
    values = np.array([1.0] * successes + [0.0] * (n - successes))
    assert ends(bootstrap.proportion(values)) == pytest.approx((low, high), abs=5e-5)
    mirrored = bootstrap.proportion(1 - values)
    assert ends(mirrored) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_scores_that_are_no_successes_get_the_bootstrap_s_interval() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    assert bootstrap.score(values).method == "Wilson"
    assert bootstrap.score(values / 2) == bootstrap.mean(values / 2)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_with_their_unit(wrong: float) -> None:
    values = np.ones(10)
    broken = values.copy()
    broken[7] = wrong
    for call in (
        lambda: bootstrap.mean(broken),
        lambda: bootstrap.proportion(broken),
        lambda: bootstrap.ratio(values, broken),
        lambda: bootstrap.mean_difference(values, broken),
        lambda: bootstrap.relative_change(broken, values),
    ):
        with pytest.raises(MacllmError, match="unit 7 has the value"):
            call()


def test_values_without_units_or_pairs_are_refused() -> None:
    for values in (np.zeros(0), np.zeros((2, 2))):
        with pytest.raises(MacllmError, match="nothing to resample"):
            bootstrap.mean(values)
    with pytest.raises(MacllmError, match="10 units are paired with 9"):
        bootstrap.mean_difference(np.ones(10), np.ones(9))
    for denominators in (np.zeros(10), -np.ones(10)):
        with pytest.raises(MacllmError, match="denominators above 0"):
            bootstrap.ratio(np.ones(10), denominators)


@pytest.mark.parity
@pytest.mark.parametrize("n", [100, 333])
def test_bca_equals_scipy_s_on_the_same_resamples(n: int) -> None:
    from scipy import stats

    random = np.random.default_rng(n)
    size, before, after = documents(random, n)
    ratio: bootstrap.Statistic = lambda means: means[1] / means[0]  # noqa: E731

    def scipy_ratio(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return b.sum(axis) / a.sum(axis)

    for columns in ((size, before), (before, after)):
        given = SimpleNamespace(bootstrap_distribution=bootstrap.resampled(np.stack(columns), ratio))
        expected = stats.bootstrap(
            columns, scipy_ratio, paired=True, vectorized=True, n_resamples=0, bootstrap_result=given, method="BCa"
        ).confidence_interval
        found = bootstrap.bootstrap(np.stack(columns), ratio)
        assert ends(found) == pytest.approx(tuple(expected), rel=1e-9)


@pytest.mark.parity
def test_intervals_equal_scipy_s_of_other_resamples_within_monte_carlo_error() -> None:
    from scipy import stats

    values = np.random.default_rng(5).exponential(size=150)
    expected = stats.bootstrap((values,), np.mean, n_resamples=100_000, method="BCa", rng=0).confidence_interval
    found = bootstrap.mean(values, Resampling(resamples=100_000))
    assert ends(found) == pytest.approx(tuple(expected), abs=0.01 * (expected.high - expected.low))
    for freedom in (5, 9, 60):
        assert bootstrap.student(freedom, 0.975) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-4)

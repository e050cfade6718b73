"""Bootstrap intervals of means and ratios over documents or items, also of paired differences.

The units that are resampled must be independent: documents, not their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from macllm.errors import MacllmError

Method = Literal["BCa", "percentile", "Wilson", "none"]

# Resampled means lie between the smallest and the largest of N values. These two enclose the median of a symmetric
# distribution with probability 1 - 2^(1 - N), below 95% for N < 6.
FEWEST_UNITS = 6
FEWEST_FOR_BCA = 100  # the skewness of fewer values is too uncertain to correct by
_DRAWS = 1 << 22  # indices in memory at once
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A statistic of `n` units with its confidence interval; infinite ends if `method` is "none"."""

    value: float
    low: float
    high: float
    n: int
    method: Method

    def mapped(self, function: Callable[[float], float]) -> Interval:
        """The interval of an increasing function of the statistic."""
        low, high = (each if math.isinf(each) else function(each) for each in (self.low, self.high))
        return replace(self, value=function(self.value), low=low, high=high)

    def as_dict(self) -> dict[str, Any]:
        """The fields for JSON, None for infinite ends."""
        low, high = (each if math.isfinite(each) else None for each in (self.low, self.high))
        return {"value": self.value, "low": low, "high": high, "n": self.n, "method": self.method}


@dataclass(frozen=True)
class Resampling:
    """Settings of the bootstrap: number of resamples, seed, and confidence level."""

    resamples: int = 10_000
    seed: int = 0
    level: float = 0.95


# Statistic (...) of C column means (C, ...).
Statistic = Callable[[np.ndarray], np.ndarray]
_STANDARD = Resampling()


def mean(values: np.ndarray, settings: Resampling = _STANDARD) -> Interval:
    """The mean of `values` (N,)."""
    return bootstrap(_checked(values)[None], lambda means: means[0], settings)


def ratio(numerators: np.ndarray, denominators: np.ndarray, settings: Resampling = _STANDARD) -> Interval:
    """The sum of `numerators` (N,) by that of `denominators` (N,), such as nats by bytes of documents.

    Units with a denominator of 0 are left out.
    """
    return bootstrap(_counted(denominators, numerators), lambda means: means[1] / means[0], settings)


def mean_difference(before: np.ndarray, after: np.ndarray, settings: Resampling = _STANDARD) -> Interval:
    """The mean of `after` - `before`, (N,) each, of the same units."""
    before, after = _paired(before, after)
    return mean(after - before, settings)


def ratio_difference(
    before: np.ndarray, after: np.ndarray, denominators: np.ndarray, settings: Resampling = _STANDARD
) -> Interval:
    """The ratio of `after` to `denominators` less that of `before`, (N,) each, as `ratio`."""
    before, after = _paired(before, after)
    return ratio(after - before, denominators, settings)


def relative_change(before: np.ndarray, after: np.ndarray, settings: Resampling = _STANDARD) -> Interval:
    """The sum of `after` by the sum of `before`, less 1; (N,) each, of the same units.

    It is also the relative change of two ratios with equal denominators. Raises MacllmError if `before` sums to 0.
    """
    before, after = _paired(before, after)
    if not before.sum() > 0:
        raise MacllmError("there is no relative change", cause=f"the base value is {before.sum():g}")

    def change(means: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may consist of zeros
            return means[1] / means[0] - 1

    return bootstrap(np.stack([before, after]), change, settings)


def proportion(successes: np.ndarray, settings: Resampling = _STANDARD) -> Interval:
    """The share of ones in `successes` (N,) of 0 and 1, with Wilson's score interval (Wilson 1927).

    Unlike the bootstrap's it has a width where all units agree.
    """
    values = _checked(successes)
    n, share = len(values), float(values.mean())
    z = _NORMAL.inv_cdf((1 + settings.level) / 2)
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, min(share, center - reach)), min(1.0, max(share, center + reach)), n, "Wilson")


def score(values: np.ndarray, settings: Resampling = _STANDARD) -> Interval:
    """The mean of scores (N,): `proportion` if all are 0 or 1, else `mean`."""
    return (proportion if np.isin(values, (0, 1)).all() else mean)(values, settings)


def bootstrap(columns: np.ndarray, statistic: Statistic, settings: Resampling = _STANDARD) -> Interval:
    """The statistic of the means of `columns` (C, N), with an interval from resampled units.

    BCa (Efron 1987) from 100 units on. Below, the percentile interval, widened so that its normal approximation
    agrees with Student's (Hesterberg 2015, The American Statistician 69, section 5.3). No interval for fewer than 6
    units, and none where the statistic of a resample is not finite.
    """
    columns = np.ascontiguousarray(columns, dtype=np.float64)
    n = columns.shape[1]
    value = float(statistic(columns.sum(axis=-1) / n))
    if n < FEWEST_UNITS:
        return Interval(value, -math.inf, math.inf, n, "none")
    replicates = resampled(columns, statistic, settings)
    if not np.isfinite(replicates).all():
        return Interval(value, -math.inf, math.inf, n, "none")
    method: Method = "percentile"
    levels = _widened(n, settings.level)
    if n >= FEWEST_FOR_BCA and (corrected := _corrected(columns, statistic, value, replicates, settings.level)):
        method, levels = "BCa", corrected
    low, high = np.quantile(replicates, levels)
    return Interval(value, float(low), float(high), n, method)


def resampled(columns: np.ndarray, statistic: Statistic, settings: Resampling = _STANDARD) -> np.ndarray:
    """The statistic of each resample of the N units of `columns` (C, N): (R,)."""
    random, n = np.random.default_rng(settings.seed), columns.shape[1]
    size = max(1, _DRAWS // n)
    parts = list[np.ndarray]()
    for start in range(0, settings.resamples, size):
        index = random.integers(n, size=(min(size, settings.resamples - start), n), dtype=np.int32)
        parts.append(statistic(np.stack([column[index].sum(axis=-1) for column in columns]) / n))
    return np.concatenate(parts)


def _corrected(
    columns: np.ndarray, statistic: Statistic, value: float, replicates: np.ndarray, level: float
) -> tuple[float, float] | None:
    """The levels of BCa's quantiles (Efron 1987, eq. 2.3); None where they are undefined."""
    below = (np.count_nonzero(replicates < value) + np.count_nonzero(replicates <= value)) / (2 * len(replicates))
    if not 0 < below < 1:
        return None
    n = columns.shape[1]
    jackknife = statistic((columns.sum(axis=-1, keepdims=True) - columns) / (n - 1))  # (N,)
    deviations = jackknife.mean() - jackknife
    spread = float((deviations**2).sum())
    if not 0 < spread < math.inf:
        return None
    acceleration = float((deviations**3).sum()) / (6 * spread**1.5)
    bias = _NORMAL.inv_cdf(below)
    levels = list[float]()
    for z in (_NORMAL.inv_cdf((1 - level) / 2), _NORMAL.inv_cdf((1 + level) / 2)):
        scale = 1 - acceleration * (bias + z)
        if scale <= 0:
            return None
        levels.append(_NORMAL.cdf(bias + (bias + z) / scale))
    return levels[0], levels[1]


def _widened(n: int, level: float) -> tuple[float, float]:
    """The levels of the quantiles of the expanded percentile interval."""
    tail = _NORMAL.cdf(-math.sqrt(n / (n - 1)) * student(n - 1, (1 + level) / 2))
    return tail, 1 - tail


def student(freedom: int, level: float) -> float:
    """A quantile of Student's t by its expansion in 1 / `freedom` (Abramowitz and Stegun, 26.7.5)."""
    z = _NORMAL.inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _checked(values: np.ndarray) -> np.ndarray:
    """The values (N,) in float64. Raises MacllmError for none, or one that is not finite."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise MacllmError("there is nothing to resample", cause=f"the values have the shape {values.shape}")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise MacllmError(
            f"unit {wrong[0]} has the value {values[wrong[0]]}",
            cause="intervals need finite values",
            remedy="macllm models verify NAME, as a damaged model gives such scores",
        )
    return values


def _paired(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    before, after = _checked(before), _checked(after)
    if len(before) != len(after):
        raise MacllmError(
            f"{len(before)} units are paired with {len(after)}", remedy="evaluate both models on the same data"
        )
    return before, after


def _counted(denominators: np.ndarray, numerators: np.ndarray) -> np.ndarray:
    """Denominators and numerators (2, N) of the units that count."""
    denominators, numerators = _paired(denominators, numerators)
    if (denominators < 0).any() or not denominators.any():
        raise MacllmError("a ratio needs denominators above 0", cause=f"the smallest is {denominators.min():g}")
    used = denominators > 0
    return np.stack([denominators[used], numerators[used]])

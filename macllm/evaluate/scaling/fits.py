"""Fits of scaling laws to runs: Chinchilla's three approaches and Kaplan's joint law."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from macllm.errors import UsageError

from .laws import FLOPS_PER_PARAMETER, ChinchillaLaw, KaplanLaw
from .minimize import huber, minimized

Estimator = Literal["huber", "absolute"]
DELTA = 1e-3  # of the Huber loss (Hoffmann et al. 2022, 3.3)
_ABSOLUTE = 1e-8  # a Huber loss this narrow is the absolute value
_LEAST_DIFFERENT = 3  # sizes and numbers of tokens: less cannot tell a power from a constant
_PARTS = 16  # of the grid, one in memory at a time
_STARTS = 64  # of the grid, those of the lowest objective, are followed


class Runs(NamedTuple):
    """Trained models: parameters N, training tokens D and loss in nats, (R,) each, in float64."""

    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray

    @property
    def flops(self) -> np.ndarray:
        """Training compute, 6 N D: (R,)."""
        return FLOPS_PER_PARAMETER * self.parameters * self.tokens

    def taken(self, places: np.ndarray) -> Runs:
        """The runs at `places`."""
        return Runs(self.parameters[places], self.tokens[places], self.loss[places])


# Predicted ln L (S, R) and its slopes (S, R, P) by parameters (S, P), from ln N and ln D, (R,) or (S, R) each.
_LogLoss = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class FittedLaw:
    """A fitted law, the sum that the estimator minimizes, and the laws of resampled runs."""

    law: ChinchillaLaw | KaplanLaw
    objective: float
    resampled: tuple[ChinchillaLaw | KaplanLaw, ...] = ()

    def interval(self, of: Callable[[Any], float], level: float = 0.95) -> tuple[float, float] | None:
        """The percentile interval of a number of the law (Efron 1979); None without resampled runs."""
        if not self.resampled:
            return None
        low, high = np.quantile([of(law) for law in self.resampled], [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def _log_sum_exp(terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln of the summed exponentials of `terms` (S, R, T): (S, R), and its slopes by the terms (S, R, T)."""
    top = terms.max(axis=-1, keepdims=True)
    shares = np.exp(terms - top)
    total = shares.sum(axis=-1, keepdims=True)
    return (top + np.log(total))[..., 0], shares / total


def _chinchilla(theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """LSE(a - alpha n, b - beta d, e) (Hoffmann et al., 3.3) and its slopes.

    theta is ln a, ln b, ln e, alpha, beta.
    """
    a, b, e, alpha, beta = (theta[:, i, None] for i in range(5))
    terms = np.stack(np.broadcast_arrays(a - alpha * n, b - beta * d, e), axis=-1)  # (S, R, 3)
    log_loss, shares = _log_sum_exp(terms)
    by_exponent = [-shares[..., 0] * n, -shares[..., 1] * d]
    return log_loss, np.stack([shares[..., 0], shares[..., 1], shares[..., 2], *by_exponent], axis=-1)


def _kaplan(theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha_d LSE(p - r n, q - d) and its slopes.

    theta is p, q, r, alpha_d, with r = alpha_n / alpha_d, p = r ln n_c and q = ln d_c.
    """
    p, q, r, power = (theta[:, i, None] for i in range(4))
    terms = np.stack(np.broadcast_arrays(p - r * n, q - d), axis=-1)  # (S, R, 2)
    sums, shares = _log_sum_exp(terms)
    slopes = [power * shares[..., 0], power * shares[..., 1], -power * shares[..., 0] * n, sums]
    return power * sums, np.stack(slopes, axis=-1)


@dataclass(frozen=True)
class _Family:
    """A law to fit: its model, the grid of starts, and the law of fitted parameters (P,)."""

    log_loss: _LogLoss
    grid: tuple[Sequence[float], ...]
    law: Callable[[np.ndarray], ChinchillaLaw | KaplanLaw]


def _chinchilla_law(theta: np.ndarray) -> ChinchillaLaw:
    with np.errstate(over="ignore"):  # infinite for runs that no law describes
        a, b, e = np.exp(theta[:3]).tolist()
    return ChinchillaLaw(e=e, a=a, b=b, alpha=float(theta[3]), beta=float(theta[4]))


def _kaplan_law(theta: np.ndarray) -> KaplanLaw:
    p, q, r, power = theta
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        n_c, d_c = np.exp([p / r, q]).tolist()
    return KaplanLaw(n_c=n_c, d_c=d_c, alpha_n=float(r * power), alpha_d=float(power))


FAMILIES = {
    # Chinchilla's starts are those of the paper.
    "chinchilla": _Family(
        _chinchilla,
        (range(0, 30, 5), range(0, 30, 5), (-1, -0.5, 0, 0.5, 1), (0, 0.5, 1, 1.5, 2), (0, 0.5, 1, 1.5, 2)),
        _chinchilla_law,
    ),
    "kaplan": _Family(
        _kaplan,
        (range(10, 50, 10), range(10, 50, 10), (0.25, 0.5, 1, 2), (0.02, 0.05, 0.1, 0.2, 0.5)),
        _kaplan_law,
    ),
}
"""The laws that can be fitted, by name."""


def fit(name: str, runs: Runs, estimator: Estimator = "huber", *, samples: int = 0, seed: int = 0) -> FittedLaw:
    """The law with the lowest sum of Huber losses of ln L, and those of resampled runs.

    `absolute` sums absolute values instead, to which a Huber loss with a fitted width comes (arXiv:2404.10102). The
    resampled fits begin with the one of all runs. Raises UsageError for too few or too similar runs, and for
    runs that no such law describes.
    """
    family = FAMILIES[name]
    if len(runs.loss) <= len(family.grid):
        count = len(family.grid)
        raise UsageError(
            f"{len(runs.loss)} runs are too few for a law of {count} numbers", remedy=f"{count + 1} runs or more"
        )
    for what, values in (("sizes", runs.parameters), ("numbers of tokens", runs.tokens)):
        if len(np.unique(values)) < _LEAST_DIFFERENT:
            raise UsageError(
                f"the runs have fewer than {_LEAST_DIFFERENT} {what}", cause="they do not determine a law",
                remedy="more different runs",
            )  # fmt: skip
    delta = DELTA if estimator == "huber" else _ABSOLUTE
    n, d, target = np.log(runs.parameters), np.log(runs.tokens), np.log(runs.loss)
    theta, objective = _best(family, n, d, target, delta)
    law = family.law(theta)
    if not all(0 < value < np.inf for value in astuple(law)):
        raise UsageError(
            f"the {name} law does not fit these runs",
            cause="by it, their loss would not fall with parameters and tokens",
            remedy="more runs, without those that diverged",
        )
    resampled = list[ChinchillaLaw | KaplanLaw]()
    if samples:
        places = np.random.default_rng(seed).integers(0, len(n), (samples, len(n)))
        own, starts = (n[places], d[places]), np.tile(theta, (samples, 1))
        found, _ = minimized(lambda each: family.log_loss(each, *own), starts, target[places], delta, DELTA)
        resampled = [family.law(each) for each in found]
    return FittedLaw(law, objective, tuple(resampled))


def _best(family: _Family, n: np.ndarray, d: np.ndarray, target: np.ndarray, delta: float) -> tuple[np.ndarray, float]:
    """The parameters (P,) of the lowest objective from the starts of the grid, and the objective."""
    starts = np.array(list(itertools.product(*family.grid)), dtype=np.float64)  # (S, P)
    sums = np.concatenate([
        huber(family.log_loss(part, n, d)[0] - target, DELTA) for part in np.array_split(starts, _PARTS)
    ])  # fmt: skip
    near = starts[np.argsort(sums, kind="stable")[:_STARTS]]
    found, sums = minimized(lambda each: family.log_loss(each, n, d), near, target, delta, DELTA)
    place = int(np.argmin(sums))
    return found[place], float(sums[place])

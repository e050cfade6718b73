"""Compute-optimal sizes from runs: Chinchilla's approaches 1 and 2 (Hoffmann et al., 3.1, 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from macllm.errors import UsageError

from .fits import Runs
from .laws import FLOPS_PER_PARAMETER

_SAME_BUDGET = 0.05  # budgets whose logarithms differ less are one


@dataclass(frozen=True)
class Frontier:
    """The power law N*(C) = scale C^exponent through the best sizes of some budgets.

    `flops`, `parameters` and `loss` are (K,): the budgets, their best sizes and losses.
    """

    scale: float
    exponent: float
    flops: np.ndarray
    parameters: np.ndarray
    loss: np.ndarray

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss where 6 N D = `flops`."""
        parameters = self.scale * flops**self.exponent
        return parameters, flops / (FLOPS_PER_PARAMETER * parameters)


def envelope(runs: Runs, bins: int = 1500) -> Frontier:
    """Approach 1: the runs on the lower envelope of the losses in `bins` intervals of ln C.

    The runs are points of training curves: a run that was reported at several steps is several of them. Raises
    UsageError for fewer than two budgets.
    """
    log_flops = np.log(runs.flops)
    edges = np.linspace(log_flops.min(), log_flops.max(), bins + 1)
    owner = np.clip(np.searchsorted(edges, log_flops, side="right") - 1, 0, bins - 1)
    order = np.lexsort((runs.loss, owner))
    first = order[np.flatnonzero(np.diff(owner[order], prepend=-1))]  # the lowest loss of each interval
    lowest = np.minimum.accumulate(runs.loss[first])
    best = first[runs.loss[first] <= lowest]
    return _line(runs.flops[best], runs.parameters[best], runs.loss[best])


def parabolas(runs: Runs) -> Frontier:
    """Approach 2: for each budget the minimum of a parabola of the loss in ln N.

    Budgets of fewer than three sizes, and those whose parabola has no minimum among the sizes, are left out. Raises
    UsageError for fewer than two budgets.
    """
    order = np.argsort(runs.flops, kind="stable")
    breaks = np.flatnonzero(np.diff(np.log(runs.flops[order])) > _SAME_BUDGET) + 1
    found = list[tuple[float, float, float]]()
    for places in np.split(order, breaks):
        sizes = np.log(runs.parameters[places])
        if len(np.unique(sizes)) < 3:
            continue
        middle = sizes.mean()
        curvature, slope, height = (
            np.polynomial.Polynomial.fit(sizes - middle, runs.loss[places], 2).convert().coef[::-1]
        )
        lowest = -slope / (2 * curvature) + middle if curvature > 0 else np.inf
        if sizes.min() <= lowest <= sizes.max():
            flops = float(np.exp(np.log(runs.flops[places]).mean()))
            found.append((flops, float(np.exp(lowest)), float(height - slope**2 / (4 * curvature))))
    return _line(*np.array(found).reshape(-1, 3).T)


def _line(flops: np.ndarray, parameters: np.ndarray, loss: np.ndarray) -> Frontier:
    """The least-squares line of ln N over ln C."""
    if len(np.unique(flops)) < 2:
        raise UsageError(
            "fewer than two budgets of compute have a best size", remedy="runs of more sizes at each budget"
        )
    exponent, offset = np.polyfit(np.log(flops), np.log(parameters), 1)
    return Frontier(float(np.exp(offset)), float(exponent), flops, parameters, loss)

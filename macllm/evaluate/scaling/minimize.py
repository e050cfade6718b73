"""Robust nonlinear least squares of many starts or samples at once, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Predicted values (S, R) and their derivatives (S, R, P) for parameters theta (S, P).
Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
_NARROWING = 10.0  # of the Huber loss, from one stage to the next
_MOST_STEPS = 600  # of a stage
_TOLERANCE = 1e-14  # of the objective's relative change in a step
_DAMPING = 1e-3  # at the start
_LEAST_DAMPING, _MOST_DAMPING = 1e-12, 1e12


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """The sum of r^2 / 2 up to `delta`, then delta (|r| - delta / 2), over the last axis (Huber 1964)."""
    size = np.abs(residuals)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum(axis=-1)


def minimized(
    model: Model, theta: np.ndarray, target: np.ndarray, delta: float, widest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Local minima (S, P) of the summed Huber loss from starts `theta` (S, P), and the sums (S,).

    Levenberg-Marquardt with weights by the residuals (iteratively reweighted least squares), all starts at once. A loss
    narrower than `widest` is reached in stages from that, since a narrow one is nearly the absolute value, which has
    no second derivative.
    """
    stage = max(delta, widest)
    while True:
        theta, sums = _stage(model, theta, target, stage)
        if stage <= delta:
            return theta, sums
        stage = max(delta, stage / _NARROWING)


def _stage(model: Model, theta: np.ndarray, target: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray]:
    theta = theta.copy()
    damping = np.full(len(theta), _DAMPING)
    predicted, slopes = model(theta)
    residuals = predicted - target
    sums = huber(residuals, delta)
    for _ in range(_MOST_STEPS):
        step = _step(residuals, slopes, delta, damping)  # (S, P)
        with np.errstate(over="ignore", invalid="ignore"):
            tried, tried_slopes = model(theta + step)
            tried_sums = huber(tried - target, delta)
        better = tried_sums < sums
        gain = np.where(better, sums - tried_sums, 0) / np.maximum(sums, np.finfo(float).tiny)
        theta[better] += step[better]
        residuals[better] = (tried - target)[better]
        slopes[better], sums[better] = tried_slopes[better], tried_sums[better]
        stuck = ~better & (damping >= _MOST_DAMPING)
        damping = np.clip(np.where(better, damping / 3, damping * 4), _LEAST_DAMPING, _MOST_DAMPING)
        if np.all(stuck | (better & (gain < _TOLERANCE))):
            break
    return theta, sums


def _step(residuals: np.ndarray, slopes: np.ndarray, delta: float, damping: np.ndarray) -> np.ndarray:
    """The damped Gauss-Newton step of each start: (S, P)."""
    weights = delta / np.maximum(np.abs(residuals), delta)  # (S, R)
    weighted = slopes * weights[..., None]  # (S, R, P)
    normal = np.swapaxes(weighted, 1, 2) @ slopes  # (S, P, P)
    gradient = (weighted * residuals[..., None]).sum(axis=1)  # (S, P)
    diagonal = np.einsum("spp->sp", normal)
    scale = np.maximum(diagonal, 1e-12 * diagonal.max(axis=1, keepdims=True) + np.finfo(float).tiny)
    normal[:, range(normal.shape[-1]), range(normal.shape[-1])] += damping[:, None] * scale
    return -np.linalg.solve(normal, gradient[..., None])[..., 0]

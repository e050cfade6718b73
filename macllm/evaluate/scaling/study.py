"""All fits to the same runs, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from macllm.errors import UsageError

from .fits import FAMILIES, Estimator, FittedLaw, Runs, fit
from .frontier import Frontier, envelope, parabolas
from .laws import PUBLISHED

BUDGETS = (1.0, 10.0, 100.0)  # of compute to predict for, in multiples of the largest run's


class Sized(Protocol):
    """A law or a frontier: a source of compute-optimal sizes."""

    @property
    def exponent(self) -> float:
        """The power of compute by which the optimal number of parameters grows."""
        ...

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss where 6 N D = `flops`."""
        ...


@dataclass(frozen=True)
class Study:
    """Fits by the name of their law, frontiers by that of their approach, and failures with their causes."""

    runs: Runs
    fits: dict[str, FittedLaw] = field(default_factory=dict[str, FittedLaw])
    frontiers: dict[str, Frontier] = field(default_factory=dict[str, Frontier])
    failed: dict[str, str] = field(default_factory=dict[str, str])

    def sized(self) -> Iterator[tuple[str, Sized]]:
        """Names and what gives the compute-optimal size, of these runs and published."""
        yield from self.frontiers.items()
        yield from ((name, found.law) for name, found in self.fits.items())
        yield from ((f"{name}, published", law) for name, law in PUBLISHED.items())


def study(runs: Runs, estimator: Estimator = "huber", *, samples: int = 0, seed: int = 0) -> Study:
    """Fit both laws and both frontiers. Raises UsageError if no law can be fitted."""
    found = Study(runs)
    for name in FAMILIES:
        _try(found.fits, name, found.failed, lambda name=name: fit(name, runs, estimator, samples=samples, seed=seed))
    approaches: dict[str, Callable[[Runs], Frontier]] = {"approach 1": envelope, "approach 2": parabolas}
    for name, approach in approaches.items():
        _try(found.frontiers, name, found.failed, lambda approach=approach: approach(runs))
    if not found.fits:
        raise UsageError("no law can be fitted", cause=found.failed[next(iter(FAMILIES))], remedy="more runs")
    return found


def _try(into: dict[str, Any], name: str, failed: dict[str, str], work: Callable[[], Any]) -> None:
    try:
        into[name] = work()
    except UsageError as error:
        failed[name] = error.message

"""Spikes of the loss, and the snapshot to go back to: pure functions of the steps so far.

The watch is part of a snapshot, so that a resumed run goes back at the same step to the same snapshot as one that was
not interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Self

from macllm.errors import UsageError

from .config import TrainConfig

_WINDOW, _FEWEST = 64, 16  # steps whose losses a new one is compared with
_NORMAL = 1.4826  # the standard deviation of a normal distribution, relative to its median absolute deviation
_SMALLEST_SHARE = 0.02  # of the median: the least deviation, for losses that hardly vary


@dataclass(frozen=True)
class SpikeRules:
    """Limits of a spike and of the number of times to go back."""

    threshold: float  # standard deviations above the median; 0: no step is a spike
    patience: int  # spikes in a row
    rollbacks: int  # without a good snapshot in between

    @classmethod
    def of(cls, config: TrainConfig, steps: int) -> SpikeRules:
        """The rules that a config describes, for a run of `steps` steps.

        Raises UsageError if the run ends before it could go back.
        """
        patience = config.spike_patience
        first = max(config.save_every + patience, _FEWEST) + patience  # a snapshot is good after `patience` steps
        if config.spike_threshold and steps < first:
            raise UsageError(
                "spike_threshold has no effect",
                cause=f"the run has {steps} steps, and could not go back before step {first}",
                remedy="a lower --save-every, or no spike_threshold",
            )
        return cls(config.spike_threshold, patience, config.rollbacks)

    def has_spike(self, value: float, before: Sequence[float]) -> bool:
        """True if `value` is far above the values before it, measured by their median deviation."""
        if not self.threshold or len(before) < _FEWEST:
            return False
        middle = median(before)
        deviation = _NORMAL * median(abs(one - middle) for one in before)
        return value > middle + self.threshold * max(deviation, _SMALLEST_SHARE * abs(middle))


@dataclass(frozen=True)
class Watch:
    """Losses and gradient norms of the last steps without a spike, and snapshots to go back to."""

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    streak: int = 0  # spikes in a row up to now
    good: int = 0  # the step of the snapshot to go back to; 0: none
    waiting: int = 0  # the step of a later one, good after `patience` steps without a spike; 0: none
    rollbacks: int = 0  # since the last good snapshot
    skipped: tuple[tuple[int, int], ...] = ()  # first and last step of each range without an update

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The watch of a snapshot."""
        numbers = {name: tuple(values[name]) for name in ("losses", "norms")}
        return cls(**{**values, **numbers, "skipped": tuple(map(tuple, values["skipped"]))})

    def is_spike(self, rules: SpikeRules) -> bool:
        """True after enough spikes in a row, if there is a snapshot to go back to."""
        return bool(rules.threshold and self.good) and self.streak >= rules.patience

    @property
    def kept(self) -> frozenset[int]:
        """Steps of snapshots that must stay."""
        return frozenset({self.good, self.waiting} - {0})

    def spares_all(self, step: int) -> bool:
        """True if no step up to this one has an update."""
        return len({one for first, last in self.skipped for one in range(first, last + 1)}) >= step

    def seen(self, step: int, loss: float, norm: float, rules: SpikeRules) -> Watch:
        """The watch after a step with this loss and gradient norm."""
        if rules.has_spike(loss, self.losses) or rules.has_spike(norm, self.norms):
            # The weights of the snapshot that waits may have caused it.
            return replace(self, streak=self.streak + 1, waiting=0)
        after = replace(self, streak=0)
        if rules.threshold:
            after = replace(after, losses=(*self.losses, loss)[-_WINDOW:], norms=(*self.norms, norm)[-_WINDOW:])
        if after.waiting and step >= after.waiting + rules.patience:
            after = replace(after, good=after.waiting, waiting=0, rollbacks=0)
        return after

    def saved(self, step: int) -> Watch:
        """The watch with a snapshot of this step, which is due at it; interruptions save others."""
        if self.streak or self.waiting or self.good == step:
            return self
        return replace(self, waiting=step)

    def skipping(self, step: int) -> Watch:
        """The watch after the steps since the good snapshot, up to `step`, are given up."""
        first = (self.good or step - 1) + 1
        return replace(
            self, streak=0, waiting=0, rollbacks=self.rollbacks + 1, skipped=(*self.skipped, (min(first, step), step))
        )

"""Learning rates as functions of the step."""

from __future__ import annotations

import math
from fractions import Fraction

from ..config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then the schedule down to `min_lr_ratio`.

    The first step after warm-up has the peak, the last step of a falling schedule the lowest rate.
    """
    warm, last = share(config.warmup, steps), steps - 1
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    match config.schedule:
        case "constant":
            part = 1.0
        case "linear":
            part = 1.0 - _progress(step, warm, last)
        case "cosine":
            part = 0.5 * (1.0 + math.cos(math.pi * _progress(step, warm, last)))
        case "wsd":
            peak = max(warm, last - share(config.decay, steps))  # the last step at the peak
            part = 1.0 - _progress(max(step, peak), peak, last)
    return config.learning_rate * (part + config.min_lr_ratio * (1.0 - part))


def share(part: float, steps: float) -> int:
    """`part` * `steps` rounded up, in exact decimal arithmetic: 0.07 of 100 is 7."""
    return math.ceil(Fraction(str(part)) * Fraction(steps))


def _progress(step: int, start: int, stop: int) -> float:
    return min(1.0, (step - start) / max(1, stop - start))

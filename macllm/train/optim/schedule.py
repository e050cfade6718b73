"""Learning rates as functions of the step."""

from __future__ import annotations

import math
from fractions import Fraction

from ..config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then the schedule down to `min_lr_ratio`.

    The first step after warm-up has the peak. The lowest rate is that of the last step, or with `decay_steps` that of
    the step so many steps after.
    """
    warm, last = share(config.warmup, steps), steps - 1
    if step < warm:
        return config.learning_rate * _warm_up(step, warm, config.warmup_init)
    stop = warm + config.decay_steps if config.decay_steps else last
    match config.schedule:
        case "constant":
            part = 1.0
        case "linear":
            part = 1.0 - _progress(step, warm, stop)
        case "cosine":
            part = 0.5 * (1.0 + math.cos(math.pi * _progress(step, warm, stop)))
        case "wsd":
            peak = max(warm, last - share(config.decay, steps))  # the last step at the peak
            part = 1.0 - _progress(max(step, peak), peak, last)
    return config.learning_rate * (part + config.min_lr_ratio * (1.0 - part))


def share(part: float, steps: float) -> int:
    """`part` * `steps` rounded up, in exact decimal arithmetic: 0.07 of 100 is 7."""
    return math.ceil(Fraction(str(part)) * Fraction(steps))


def _progress(step: int, start: int, stop: int) -> float:
    return min(1.0, (step - start) / max(1, stop - start))


def _warm_up(step: int, steps: int, init: float) -> float:
    """Rate of a step of warm-up, relative to the peak: from `init` to 1, or evenly between 0 and 1 for -1."""
    if init < 0:
        return (step + 1) / (steps + 1)
    return init + (1.0 - init) * step / max(1, steps - 1)

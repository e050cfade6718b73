"""Points for scaling laws from the history of a run."""

from __future__ import annotations

import math
from pathlib import Path

from macllm.errors import DataError
from macllm.evaluate.scaling import points
from macllm.evaluate.scaling.fits import Runs

from ..events import Evaluated, Finished, Prepared
from .history import events_of
from .registry import read_settings


def points_of(folder: Path) -> Runs:
    """Parameters, trained tokens and validation loss at each evaluation of a run after its first step.

    A run without validation rows gives one point, its end. Raises DataError for a folder without either.
    """
    events = events_of(folder)
    prepared = next((event for event in events if isinstance(event, Prepared)), None)
    if prepared is None:
        raise DataError(
            f"{folder} has no run of macllm", remedy="a run's folder, or a file with parameters, tokens and loss"
        )
    settings = read_settings(folder)
    rows = settings.get("batch_size", 0) * settings.get("grad_accumulation_steps", 0)  # of a step
    if not rows or not prepared.rows:
        raise DataError(f"cannot read the settings of the run in {folder}", remedy="the folder of another run")
    each = rows * prepared.tokens / prepared.rows  # tokens of a step
    ends = [event for event in events if isinstance(event, Evaluated) and event.step]
    found = {event.step: event.loss for event in ends or [e for e in events if isinstance(e, Finished)]}
    found = {step: loss for step, loss in found.items() if 0 < loss < math.inf}  # one that diverged has no place
    return points.runs([(prepared.parameters, step * each, loss) for step, loss in found.items()], str(folder))

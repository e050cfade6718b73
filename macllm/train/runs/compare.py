"""Comparison of two runs: settings that differ, and their losses step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..events import Evaluated, Step
from .history import RunStatus, events_of, status
from .registry import RegisteredRun, located_settings

_PLACES = frozenset({"resume", "adapter_path", "output"})


@dataclass(frozen=True)
class ComparedRuns:
    """Two runs side by side; a value that one of them lacks is None. Losses are in nats."""

    settings: dict[str, tuple[Any, Any]]  # that differ
    loss: dict[int, tuple[float | None, float | None]]  # by step
    valid_loss: dict[int, tuple[float | None, float | None]]
    statuses: tuple[RunStatus, RunStatus]


def compare(first: RegisteredRun, second: RegisteredRun) -> ComparedRuns:
    """Compare two runs from their folders.

    Paths are absolute ones: each run has its own directory of relative ones.
    """
    settings = [located_settings(run) for run in (first, second)]
    names = [name for name in {**settings[0], **settings[1]} if name not in _PLACES]
    pairs = {name: (settings[0].get(name), settings[1].get(name)) for name in names}
    curves = [
        [{e.step: e.loss for e in events_of(run.path) if isinstance(e, kind)} for run in (first, second)]
        for kind in (Step, Evaluated)
    ]
    return ComparedRuns(
        settings={name: pair for name, pair in pairs.items() if pair[0] != pair[1]},
        loss=_joined(*curves[0]),
        valid_loss=_joined(*curves[1]),
        statuses=(status(first), status(second)),
    )


def _joined(first: dict[int, float], second: dict[int, float]) -> dict[int, tuple[float | None, float | None]]:
    return {step: (first.get(step), second.get(step)) for step in sorted({*first, *second})}

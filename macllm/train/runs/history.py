"""The history of a run: events read back from metrics.jsonl, and its state."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from macllm.files import read_json

from .. import events as _events
from ..events import Counts, Evaluated, Finished, Prepared, RunFailed, Step, Stopped, TrainEvent
from .folder import METRICS, SNAPSHOTS, holder
from .registry import RegisteredRun

State = Literal["running", "stopped", "finished", "failed", "missing"]
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class RunStatus:
    """The state of a run and its last numbers. Losses are in nats; `changed` is in seconds since 1970."""

    state: State
    pid: int | None = None  # of the running process, None if not known
    step: int = 0
    steps: int = 0
    loss: float | None = None
    valid_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    error: str | None = None
    changed: float | None = None


def events_of(folder: Path) -> list[TrainEvent]:
    """The events in metrics.jsonl; incomplete and unknown lines are left out."""
    try:
        text = (folder / METRICS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [event for line in text.splitlines() if (event := parsed(line)) is not None]


def parsed(line: str) -> TrainEvent | None:
    """The event of a line of metrics.jsonl; None for a damaged line or one of another version."""
    try:
        values = json.loads(line)
        kind = getattr(_events, str(values.pop("event")))
        known = {item.name for item in dataclasses.fields(kind)}
        found = {name: value for name, value in values.items() if name in known}
        if isinstance(found.get("valid"), dict):
            found["valid"] = Counts(**found["valid"])
        for name in ("loss", "grad_norm"):
            if name in found and found[name] is None:
                found[name] = math.nan
        return kind(**found)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def status(entry: RegisteredRun) -> RunStatus:
    """The state of a run, from its folder alone."""
    if entry.is_missing:
        return RunStatus("missing")
    events = events_of(entry.path)
    pid = holder(entry.path)
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    best = min((e for e in evaluated if e.step), key=lambda e: (e.loss, e.step), default=None)
    losses = [event.loss for event in events if isinstance(event, Step)]
    last = next((event for event in reversed(events) if isinstance(event, Finished | RunFailed | Stopped)), None)
    return RunStatus(
        state="running" if pid is not None else _state(events),
        pid=pid or None,
        step=max(map(_reached, events), default=0),
        steps=next((event.steps for event in reversed(events) if isinstance(event, Prepared)), 0),
        loss=losses[-1] if losses else None,
        valid_loss=evaluated[-1].loss if evaluated else None,
        best_loss=best.loss if best else None,
        best_step=best.step if best else None,
        error=last.error if isinstance(last, RunFailed) and events and last is events[-1] else None,
        changed=_changed(entry.path),
    )


def follow(folder: Path, sleep: Callable[[float], object] = time.sleep) -> Generator[TrainEvent]:
    """The events of a run as they are written; ends with the run, whose processes it leaves alone.

    When a resumed run has written its metrics again, only the new lines follow.
    """
    shown: list[str] = []
    while True:
        alive = holder(folder) is not None  # before reading, so that the last lines are not missed
        lines = list(_whole_lines(folder))
        same = next((n for n, (a, b) in enumerate(zip(shown, lines, strict=False)) if a != b), len(lines))
        for line in lines[min(same, len(shown)) :]:
            if (event := parsed(line)) is not None:
                yield event
        shown = lines
        if not alive:
            return
        sleep(_POLL_SECONDS)


def snapshots_of(folder: Path) -> list[dict[str, Any]]:
    """Step, size, validation loss and identity of each snapshot, oldest first, unverified."""
    found: list[dict[str, Any]] = []
    for path in sorted((folder / SNAPSHOTS).glob("step-*")):
        try:
            about = read_json(path / "state.json")
            size = sum(file.stat().st_size for file in path.iterdir())
            step, loss = about["step"], about.get("eval_loss")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        found.append({"step": step, "bytes": size, "valid_loss": loss, "run": about.get("run"), "path": str(path)})
    return found


def _state(events: list[TrainEvent]) -> State:
    """The state of a run without a process: a killed one wrote no end."""
    match events[-1] if events else None:
        case Finished():
            return "finished"
        case RunFailed():
            return "failed"
        case _:
            return "stopped"


def _reached(event: TrainEvent) -> int:
    return int(getattr(event, "first_step", getattr(event, "step", 0)))


def _changed(folder: Path) -> float | None:
    try:
        return (folder / METRICS).stat().st_mtime
    except OSError:
        return None


def _whole_lines(folder: Path) -> Iterator[str]:
    """The lines of metrics.jsonl that end; the last one may be in the middle of being written."""
    try:
        text = (folder / METRICS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    yield from (line for line in text.splitlines(keepends=True) if line.endswith("\n"))

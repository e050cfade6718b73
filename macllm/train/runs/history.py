"""The history of a run: events read back from metrics.jsonl, and its state."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from macllm.files import read_json

from .. import events as _events
from ..events import Counts, Evaluated, Finished, Prepared, RunFailed, Step, Stopped, TrainEvent
from .folder import METRICS, SNAPSHOTS, holder
from .registry import RegisteredRun

State = Literal["running", "stopped", "finished", "failed", "crashed", "missing"]
_POLL_SECONDS = 0.5
_NUMBERS = ("step", "steps", "first_step", "loss")  # that a state is told with
_STEP = b'{"event": "Step"'  # the beginning of most lines


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
    return [event for line in _lines(folder) if (event := parsed(line)) is not None]


def parsed(line: bytes) -> TrainEvent | None:
    """The event of a line of metrics.jsonl; None for a damaged line or one of another version."""
    try:
        values = json.loads(line)
        kind = getattr(_events, str(values.pop("event")))
        known = {item.name for item in dataclasses.fields(kind)}
        found = {name: value for name, value in values.items() if name in known}
        if isinstance(found.get("valid"), dict):
            found["valid"] = Counts(**found["valid"])
        if "notes" in found:
            found["notes"] = tuple(map(str, found["notes"]))
        for name in ("loss", "grad_norm"):
            if name in found and found[name] is None:
                found[name] = math.nan
        event = kind(**found)
        return event if all(isinstance(getattr(event, name, 0), int | float) for name in _NUMBERS) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def status(entry: RegisteredRun) -> RunStatus:
    """The state of a run, from its folder alone."""
    if entry.is_missing:
        return RunStatus("missing")
    held = holder(entry.path)
    lines = _lines(entry.path)
    events = _told(lines)
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    best = min((e for e in evaluated if e.step), key=lambda e: (e.loss, e.step), default=None)
    last = events[-1] if events else None
    return RunStatus(
        state="running" if held is not None else _state(last, bool(lines) and not lines[-1].endswith(b"\n")),
        pid=held.pid or None if held else None,
        step=max(map(_reached, events), default=0),
        steps=next((event.steps for event in reversed(events) if isinstance(event, Prepared)), 0),
        loss=next((event.loss for event in reversed(events) if isinstance(event, Step)), None),
        valid_loss=evaluated[-1].loss if evaluated else None,
        best_loss=best.loss if best else None,
        best_step=best.step if best else None,
        error=last.error if isinstance(last, RunFailed) else None,
        changed=_changed(entry.path),
    )


def follow(folder: Path, sleep: Callable[[float], object] = time.sleep) -> Generator[TrainEvent]:
    """The events of a run as they are written; ends with the run, whose processes it leaves alone.

    When a resumed run has written its metrics again, only the new lines follow.
    """
    metrics = _Growing(folder / METRICS)
    while True:
        alive = holder(folder) is not None  # before reading, so that the last lines are not missed
        for line in metrics.new():
            if (event := parsed(line)) is not None:
                yield event
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
            step, loss = int(about["step"]), about.get("eval_loss")
            loss = None if loss is None else float(loss)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        found.append({"step": step, "bytes": size, "valid_loss": loss, "run": about.get("run"), "path": str(path)})
    return found


class _Growing:
    """A file that grows by lines, and is replaced from time to time by one with the same beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._read = 0, 0  # bytes
        self._lines: list[bytes] = []

    def new(self) -> list[bytes]:
        """The lines since the last call; the last one only if it has its end."""
        try:
            with self._path.open("rb") as file:
                return self._new(file)
        except OSError:
            return []

    def _new(self, file: BinaryIO) -> list[bytes]:
        now, before = os.fstat(file.fileno()), self._lines
        if now.st_ino != self._inode or now.st_size < self._read:
            self._inode, self._read, self._lines = now.st_ino, 0, []
        file.seek(self._read)
        lines = [line for line in file.readlines() if line.endswith(b"\n")]
        self._read += sum(map(len, lines))
        if self._lines:
            self._lines += lines
            return lines
        self._lines = lines
        same = next((n for n, (a, b) in enumerate(zip(before, lines, strict=False)) if a != b), len(lines))
        return lines[min(same, len(before)) :]


def _state(last: TrainEvent | None, is_cut: bool) -> State:
    """The state of a run without a process, by its last event; a killed one wrote no end."""
    match last:
        case _ if is_cut:
            return "crashed"
        case Finished():
            return "finished"
        case RunFailed():
            return "failed"
        case Stopped() | None:
            return "stopped"
        case _:
            return "crashed"


def _told(lines: list[bytes]) -> list[TrainEvent]:
    """The events of lines; of the reports of steps, which are most of a long file, only the last one."""
    last = next((n for n in reversed(range(len(lines))) if lines[n].startswith(_STEP) and parsed(lines[n])), None)
    told = (line for n, line in enumerate(lines) if n == last or not line.startswith(_STEP))
    return [event for line in told if (event := parsed(line)) is not None]


def _lines(folder: Path) -> list[bytes]:
    try:
        with (folder / METRICS).open("rb") as file:
            return file.readlines()
    except OSError:
        return []


def _reached(event: TrainEvent) -> int:
    return int(getattr(event, "first_step", getattr(event, "step", 0)))


def _changed(folder: Path) -> float | None:
    try:
        return (folder / METRICS).stat().st_mtime
    except OSError:
        return None

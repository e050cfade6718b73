"""Reports of a run to Weights & Biases or TensorBoard, for those who ask for it and have it installed.

Trackers only read events: an error of one is told once and ends its reports, and the run goes on. A resumed run goes on
with the same curves.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from macllm.errors import UsageError

from .config import TrainConfig
from .events import Evaluated, Prepared, Step, TrackerFailed, TrainEvent

_WANDB_RUN = "wandb-run"  # in the run's folder, the id with which it goes on


class Tracker(Protocol):
    """A place for the numbers of a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers by their names."""
        ...

    def close(self) -> None:
        """Take no more."""
        ...


class WandbTracker:
    """Weights & Biases, with the project of WANDB_PROJECT; files in the run's folder."""

    def __init__(self, folder: Path, config: TrainConfig, first_step: int) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # its lines would tear those of the run
        os.environ.setdefault("WANDB_CONSOLE", "off")
        path = folder / _WANDB_RUN
        if not path.exists():
            path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", "macllm"),
            name=folder.resolve().name,
            id=path.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
            config=config.as_dict(),
        )
        self._run.define_metric("*", step_metric="step")  # a resumed run may go back some steps

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """End the connection."""
        self._run.finish()


class TensorBoardTracker:
    """Event files for TensorBoard, in `tensorboard/` in the run's folder."""

    def __init__(self, folder: Path, config: TrainConfig, first_step: int) -> None:
        events = import_module("tensorboard.compat.proto.event_pb2")
        summaries = import_module("tensorboard.compat.proto.summary_pb2")
        writers = import_module("tensorboard.summary.writer.event_file_writer")
        self._event, self._summary = events.Event, summaries.Summary
        self._writer = writers.EventFileWriter(str(folder / "tensorboard"))
        # Later points in earlier files are not shown; a run stopped before its first snapshot begins at step 0 again.
        start = events.SessionLog(status=events.SessionLog.START)
        first = first_step and first_step + 1
        self._writer.add_event(self._event(wall_time=time.time(), step=first, session_log=start))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers."""
        made = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=made))
        self._writer.add_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


_TRACKERS: dict[str, Callable[[Path, TrainConfig, int], Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
}


def check(config: TrainConfig) -> None:
    """Raise UsageError for a tracker that is not installed."""
    for name in config.trackers:
        # A folder of this name in the current directory, as wandb leaves one, is no package with an origin.
        if name not in sys.modules and getattr(find_spec(name), "origin", None) is None:
            raise UsageError(
                f"{name} is not installed",
                cause=f"report_to is {name}",
                remedy=f"pip install {name}, or --report-to none",
            )


def reported(folder: Path, config: TrainConfig, events: Generator[TrainEvent]) -> Generator[TrainEvent]:
    """Yield the events of a run, and report numbers to the trackers that the config names."""
    running: dict[str, Tracker] = {}
    with closing(events):
        try:
            for event in events:
                yield event
                yield from _report(event, running, folder, config)
        finally:
            for tracker in running.values():
                with suppress(Exception):
                    tracker.close()


def _report(
    event: TrainEvent, running: dict[str, Tracker], folder: Path, config: TrainConfig
) -> Generator[TrackerFailed]:
    for name in config.trackers if isinstance(event, Prepared) else list(running):
        try:
            if isinstance(event, Prepared):
                running[name] = _TRACKERS[name](folder, config, event.first_step)
            elif isinstance(event, Step | Evaluated):
                running[name].log(event.step, _values(event))
        except (Exception, SystemExit) as error:
            running.pop(name, None)
            yield TrackerFailed(name, f"{type(error).__name__}: {error}")


def _values(event: Step | Evaluated) -> dict[str, float]:
    if isinstance(event, Evaluated):
        return {f"valid/{name}": value for name, value in {"loss": event.loss, **event.metrics}.items()}
    names = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "peak_bytes")
    return {
        f"train/{name}": value for name, value in {**{n: getattr(event, n) for n in names}, **event.metrics}.items()
    }

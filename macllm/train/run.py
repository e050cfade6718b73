"""A run's folder: run.json, metrics.jsonl, snapshots/ and an exclusive lock."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from macllm.errors import UsageError
from macllm.files import write_json, write_text

from . import rows
from .config import SETTINGS_NAME, TrainConfig
from .events import Advanced, Prepared, TrainEvent
from .snapshot import Snapshots

_METRICS = "metrics.jsonl"


def check(folder: Path, config: TrainConfig) -> None:
    """Check data and folder before any work.

    Raises DataError for missing or invalid data, UsageError for the folder of another run.
    """
    rows.check(config.data, config.valid, config.columns)
    if config.resume or not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file", remedy="another folder for the run")
    for name in ("snapshots", "adapters.safetensors", "model"):
        if (folder / name).exists():
            raise UsageError(
                f"{folder} already has a run",
                cause=f"{folder / name} exists",
                remedy="--resume to continue it, or another folder",
            )


@contextmanager
def lock(folder: Path) -> Generator[None]:
    """Hold the folder, made if it is missing. Raises UsageError if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another process is training in {folder}", remedy="wait for it, or use another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)


def snapshots(folder: Path, config: TrainConfig, identity: dict[str, Any]) -> Snapshots:
    """The snapshots in a run's folder; `identity` has what determines its weights beside the config."""
    return Snapshots(folder / "snapshots", config.keep, {**config.reproducibility_fields(), **identity})


def record(folder: Path, config: TrainConfig, events: Generator[TrainEvent]) -> Generator[TrainEvent]:
    """Yield the events of a run, and write them to metrics.jsonl and the settings to run.json."""
    with closing(events):
        for event in events:
            if isinstance(event, Prepared):
                write_json(folder / SETTINGS_NAME, config.as_dict())
                # Drop lines of steps after the snapshot: they will be written again.
                kept = [line for line in _lines(folder) if _step(line) <= event.first_step]
                write_text(folder / _METRICS, "".join(kept))
            if not isinstance(event, Advanced):
                with (folder / _METRICS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"event": type(event).__name__, **asdict(event)}) + "\n")
            yield event


def follow(events: Generator[TrainEvent], on_event: Callable[[TrainEvent], None] | None) -> None:
    """Run to the end, and hand each event to `on_event`."""
    with closing(events) as stream:
        for event in stream:
            if on_event is not None:
                on_event(event)


def _lines(folder: Path) -> list[str]:
    path = folder / _METRICS
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []


def _step(line: str) -> int:
    """The step of a line of metrics.jsonl; a huge number for an incomplete line."""
    try:
        event = json.loads(line)
        return int(event.get("step", event.get("first_step", 0)))
    except (ValueError, TypeError, AttributeError):
        return 2**63

"""A run's folder: run.json, metrics.jsonl, snapshots/ and an exclusive lock."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from macllm.errors import MacllmError, UsageError
from macllm.files import write_json, write_text

from . import rows
from .config import SETTINGS_NAME, TrainConfig
from .events import Advanced, Prepared, TrainEvent
from .events import record as as_record
from .snapshot import Snapshots

_METRICS, _SNAPSHOTS = "metrics.jsonl", "snapshots"
_OF_RUNS = (_SNAPSHOTS, SETTINGS_NAME, _METRICS)
# A run writes some of these; the others belong to an adapter of PEFT, whose config it would replace.
_RESULTS = ("adapters.safetensors", "adapter_config.json", "adapter_model.safetensors", "model")


def check(folder: Path, config: TrainConfig) -> None:
    """Check data and folder before any work.

    Raises DataError for missing or invalid data, UsageError for a folder in which a run would overwrite something, and
    for one without a run to resume.
    """
    rows.check(config.data, config.valid, config.columns)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", remedy="another folder for the run")
    if config.resume:
        _check_resumable(folder)
        return
    for name in (*_OF_RUNS, *_RESULTS):
        if os.path.lexists(folder / name):
            resumable = (folder / SETTINGS_NAME).is_file() and (folder / _SNAPSHOTS).is_dir()
            raise UsageError(
                f"{folder} already has a run" if name in _OF_RUNS else f"{folder} already has a model or an adapter",
                cause=f"{folder / name} exists",
                remedy="--resume to continue it, or another folder" if resumable else "another folder for the run",
            )


def _check_resumable(folder: Path) -> None:
    """Raise UsageError for a folder without a run that has a snapshot or was stopped before its first."""
    missing = [n for n, there in ((SETTINGS_NAME, Path.is_file), (_SNAPSHOTS, Path.is_dir)) if not there(folder / n)]
    results = [name for name in _RESULTS if os.path.lexists(folder / name)]
    if missing:
        cause = f"{folder / missing[0]} does not exist"
    elif results and not any((folder / _SNAPSHOTS).glob("step-*")):
        cause = f"{folder / _SNAPSHOTS} is empty, and {folder / results[0]} exists"
    else:
        return
    raise UsageError(
        f"{folder} has no run to resume",
        cause=cause,
        remedy="without --resume and in another folder for a new run",
    )


@contextmanager
def lock(folder: Path) -> Generator[None]:
    """Hold the folder, made if it is missing.

    Raises UsageError if another process holds it, or if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(
            f"cannot write to the folder {folder}", cause=str(error), remedy="another folder for the run"
        ) from error
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
    return Snapshots(folder / _SNAPSHOTS, config.keep, {**config.reproducibility_fields(), **identity})


def record(folder: Path, config: TrainConfig, events: Generator[TrainEvent]) -> Generator[TrainEvent]:
    """Yield the events of a run, and write them to metrics.jsonl and the settings to run.json.

    Numbers that are not finite are written as null.
    """
    try:
        with closing(events):
            for event in events:
                _write(folder, config, event)
                yield event
    except OSError as error:
        raise MacllmError(
            f"cannot write to {folder}",
            cause=str(error),
            remedy="free some disk space, then run the same command with --resume",
        ) from error


def _write(folder: Path, config: TrainConfig, event: TrainEvent) -> None:
    if isinstance(event, Prepared):
        # A run without a snapshot yet can be resumed as long as the folder for them is there.
        (folder / _SNAPSHOTS).mkdir(exist_ok=True)
        write_json(folder / SETTINGS_NAME, config.as_dict())
        # Drop lines of steps after the snapshot: they will be written again.
        kept = [line for line in _lines(folder) if event.first_step and _step(line) <= event.first_step]
        write_text(folder / _METRICS, "".join(kept))
    if not isinstance(event, Advanced):
        with (folder / _METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(as_record(event), allow_nan=False) + "\n")


def follow(events: Generator[TrainEvent], on_event: Callable[[TrainEvent], None] | None) -> None:
    """Run to the end, and hand each event to `on_event`."""
    with closing(events) as stream:
        for event in stream:
            if on_event is not None:
                on_event(event)


def _lines(folder: Path) -> list[str]:
    path = folder / _METRICS
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []


def _step(line: str) -> int:
    """The step of a line of metrics.jsonl; a huge number for an incomplete line."""
    try:
        event = json.loads(line)
        return int(event.get("step", event.get("first_step", 0)))
    except (ValueError, TypeError, AttributeError):
        return 2**63

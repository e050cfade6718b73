"""Run directory: run.json, metrics.jsonl, snapshots/ and an exclusive lock."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from macllm.errors import UsageError
from macllm.files import write_json, write_text

from . import rows
from .config import SETTINGS_NAME, TrainConfig
from .events import Advanced, Finished, Prepared, Saved, TrainEvent
from .loop import Trainer
from .snapshot import Snapshots

_METRICS = "metrics.jsonl"


class Run:
    """A run's directory, locked in the `with` block. Raises UsageError if another process has the lock."""

    def __init__(self, folder: Path, config: TrainConfig, identity: dict[str, Any]) -> None:
        self.folder = folder
        self._config = config
        self._lock: int | None = None
        self.snapshots = Snapshots(folder / "snapshots", config.keep, {**config.reproducibility_fields(), **identity})

    @staticmethod
    def check(folder: Path, config: TrainConfig) -> None:
        """Check data and directory before any work.

        Raises DataError for missing or invalid data, UsageError for the directory of another run.
        """
        rows.check(config.data, config.valid)
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

    def __enter__(self) -> Run:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise UsageError(
                f"another process is training in {self.folder}", remedy="wait for it, or use another folder"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def record(self, trainer: Trainer, export: Callable[[], object], result: Path) -> Generator[TrainEvent]:
        """Yield the events of `trainer` and write each to metrics.jsonl.

        At the end, also after an interruption, `export` writes `result` from the model, unless no step was done: the
        best weights if the config selects them and the run has validation data, else the last ones.
        """
        first_step = trainer.state.step
        write_json(self.folder / SETTINGS_NAME, self._config.as_dict())
        # Drop lines of steps after the snapshot: they will be written again.
        write_text(self.folder / _METRICS, "".join(line for line in self._lines() if _step(line) <= first_step))
        events = self._events(trainer, export, result)
        with closing(events), (self.folder / _METRICS).open("a", encoding="utf-8") as file:
            for event in events:
                if isinstance(event, Advanced):
                    yield event
                    continue
                file.write(json.dumps({"event": type(event).__name__, **asdict(event)}) + "\n")
                file.flush()
                yield event

    def _events(self, trainer: Trainer, export: Callable[[], object], result: Path) -> Generator[TrainEvent]:
        began, rows, loss = time.perf_counter(), trainer.rows, float("nan")
        yield Prepared(
            **asdict(rows.counts),
            valid_rows=len(rows.valid),
            parameters=_size(trainer.model.parameters()),
            trained_parameters=_size(trainer.model.trainable_parameters()),
            steps=trainer.steps,
            first_step=trainer.state.step,
        )
        try:
            yield from trainer.run()
        finally:
            if trainer.state.step:
                loss = self._load_best(trainer)
                trainer.model.eval()
                export()
        yield Saved(trainer.state.step, str(result))
        yield Finished(trainer.state.step, loss, time.perf_counter() - began, str(self.folder))

    def _load_best(self, trainer: Trainer) -> float:
        """Load the weights to export into the model and return their loss."""
        best = self.snapshots.best() if self._config.select == "best" and trainer.rows.valid else None
        if best is None or best.eval_loss is None:
            return trainer.last_loss if trainer.state.eval_loss is None else trainer.state.eval_loss
        trainer.put(best.weights)
        return best.eval_loss

    def _lines(self) -> list[str]:
        path = self.folder / _METRICS
        return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []


def _size(parameters: Any) -> int:
    return sum(array.size for _, array in tree_flatten(parameters) if isinstance(array, mx.array))


def _step(line: str) -> int:
    """The step of a line of metrics.jsonl; a huge number for an incomplete line."""
    try:
        event = json.loads(line)
        return int(event.get("step", event.get("first_step", 0)))
    except (ValueError, TypeError, AttributeError):
        return 2**63

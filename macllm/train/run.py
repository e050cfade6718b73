"""A run's folder: run.json, metrics.jsonl, snapshots/ and an exclusive lock."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from macllm.errors import DataError, MacllmError, UsageError
from macllm.files import write_json, write_text

from . import data, rows, trackers
from .config import SETTINGS_NAME, TrainConfig
from .contract import AnyExample
from .events import Advanced, Finished, Prepared, Restarted, RunFailed, Stopped, TrainEvent
from .notes import collected
from .runs import registry
from .runs.folder import ENVIRONMENT, METRICS, SNAPSHOTS, append, lock, newest_step
from .snapshot import BATCHES, Snapshots

__all__ = ["check", "check_tokens", "check_vocabulary", "follow", "held", "lock", "record", "snapshots"]

_BEGAN = "began_with"  # in run.json: the first `BATCHES` of a run that goes on with others
_OF_RUNS = (SNAPSHOTS, SETTINGS_NAME, METRICS, ENVIRONMENT)
# A run writes some of these; the others belong to an adapter of PEFT, whose config it would replace.
_RESULTS = ("adapters.safetensors", "adapter_config.json", "adapter_model.safetensors", "model")


def check(folder: Path, config: TrainConfig) -> None:
    """Check data and folder before any work.

    Raises DataError for missing or invalid data, UsageError for a folder in which a run would overwrite something, and
    for one without a run to resume.
    """
    for source in filter(None, data.sources(config)):
        rows.read(source, most=1, columns=config.columns)
    trackers.check(config)
    _check_folder(folder, config)


@contextmanager
def held(folder: Path, config: TrainConfig) -> Generator[Sequence[str]]:
    """Hold a run's folder from before its model is loaded to its end.

    Yields the notes of this time, for `record`. Raises: UsageError, also as `check`.
    """
    with lock(folder), collected() as notes:
        _check_folder(folder, config)  # another run may have ended since the first check
        yield notes


def _check_folder(folder: Path, config: TrainConfig) -> None:
    if not _is_utf8(str(folder)):
        raise UsageError(f"the name of the folder {folder} is not UTF-8", remedy="another folder for the run")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", remedy="another folder for the run")
    if config.resume:
        _check_resumable(folder)
        return
    for name in (*_OF_RUNS, *_RESULTS):
        if os.path.lexists(folder / name) and not (name == SNAPSHOTS and _was_never_begun(folder)):
            resumable = (folder / SETTINGS_NAME).is_file() and (folder / SNAPSHOTS).is_dir()
            raise UsageError(
                f"{folder} already has a run" if name in _OF_RUNS else f"{folder} already has a model or an adapter",
                cause=f"{folder / name} exists",
                remedy=f"{_resume(folder)}, or another folder" if resumable else "another folder for the run",
            )
    if models := sorted(folder.glob("*.safetensors")):
        raise UsageError(
            f"{folder} already has a model or an adapter",
            cause=f"{models[0]} exists",
            remedy="another folder for the run",
        )


def _resume(folder: Path) -> str:
    return f"--resume, or macllm runs resume {shlex.quote(str(folder))}, to continue it"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_vocabulary(name: str, rows: int, tokens: int, remedy: str) -> None:
    """Refuse a tokenizer with tokens that the embedding has no rows for: reading them gives other memory."""
    if tokens > rows:
        raise UsageError(f"the tokenizer has {tokens} tokens, the embedding of {name} only {rows} rows", remedy=remedy)


def check_tokens(name: str, rows: int, examples: Iterable[AnyExample], remedy: str) -> None:
    """Refuse an example with a token beyond the embedding.

    Few tokens are no proof, as in `check_vocabulary`: ids of added tokens may have gaps.
    """
    for example in examples:
        if (highest := max(int(tokens.max(initial=0)) for tokens in example.sequences)) >= rows:
            raise DataError(
                f"{example.where} has token {highest}, the embedding of {name} only {rows} rows", remedy=remedy
            )


def _was_never_begun(folder: Path) -> bool:
    """True for a run that was killed between the folder of its snapshots and its settings."""
    kept = folder / SNAPSHOTS
    others = any(os.path.lexists(folder / name) for name in (*_OF_RUNS, *_RESULTS) if name != SNAPSHOTS)
    return not others and kept.is_dir() and not kept.is_symlink() and not any(kept.iterdir())


def _check_resumable(folder: Path) -> None:
    """Raise UsageError for a folder without a run that has a snapshot or was stopped before its first."""
    missing = [n for n, there in ((SETTINGS_NAME, Path.is_file), (SNAPSHOTS, Path.is_dir)) if not there(folder / n)]
    results = [name for name in _RESULTS if os.path.lexists(folder / name)]
    if missing:
        cause = f"{folder / missing[0]} does not exist"
    elif results and not any((folder / SNAPSHOTS).glob("step-*")):
        cause = f"{folder / SNAPSHOTS} is empty, and {folder / results[0]} exists"
    else:
        return
    raise UsageError(
        f"{folder} has no run to resume",
        cause=cause,
        remedy="without --resume and in another folder for a new run",
    )


def snapshots(folder: Path, config: TrainConfig, identity: dict[str, Any]) -> Snapshots:
    """The snapshots in a run's folder; `identity` has what determines its weights beside the config."""
    # A setting that the version of a snapshot did not have is at its default there, which keeps the former behaviour.
    ours = config.reproducibility_fields()
    defaults = {name: value for name, value in config.defaults().items() if name in ours}
    return Snapshots(folder / SNAPSHOTS, config.keep, {**ours, **identity}, defaults, _began_with(folder, config))


def _began_with(folder: Path, config: TrainConfig) -> dict[str, int]:
    """The batches by which the rows of a step are chosen: the run's first ones if they have as many rows."""
    ours = {name: int(getattr(config, name)) for name in BATCHES}
    stored = registry.read_settings(folder) if config.resume else {}
    try:
        began = {name: int(stored.get(_BEGAN, stored)[name]) for name in BATCHES}
    except (TypeError, ValueError, KeyError):
        return ours
    return began if math.prod(began.values()) == math.prod(ours.values()) else ours


def record(
    folder: Path, config: TrainConfig, events: Generator[TrainEvent], notes: Sequence[str] = ()
) -> Generator[TrainEvent]:
    """Yield the events of a run, write them into its folder, and report them to its trackers.

    `Prepared` gets the notes that there are by then.
    """
    yield from trackers.reported(folder, config, _recorded(folder, config, events, notes))


def _recorded(
    folder: Path, config: TrainConfig, events: Generator[TrainEvent], notes: Sequence[str]
) -> Generator[TrainEvent]:
    """Yield the events of a run, and write them to metrics.jsonl and the settings to run.json.

    An interruption or an error is the last line. Numbers that are not finite are written as null.
    """
    begun, ended, step = False, False, 0
    try:
        with closing(events):
            for event in events:
                step = getattr(event, "first_step", getattr(event, "step", step))
                if isinstance(event, Advanced):
                    step = event.done if event.work == "training" else step
                elif isinstance(event, Prepared):
                    event = replace(event, notes=tuple(notes))
                    _begin(folder, config, event)
                    begun = True
                else:
                    append(folder, event)
                    ended = isinstance(event, Finished)
                yield event
    except (GeneratorExit, KeyboardInterrupt):
        # A step that was interrupted at its very end is saved, but was not told.
        step += newest_step(folder) == step + 1
        _append_last(folder, begun and not ended, Stopped(step))
        raise
    except MacllmError as error:
        _append_last(folder, begun, RunFailed(step, error.message, error.cause))
        raise
    except Exception as error:
        _append_last(folder, begun, RunFailed(step, str(error) or type(error).__name__))
        if not isinstance(error, OSError):
            raise
        raise MacllmError(
            f"cannot write to {folder}",
            cause=str(error),
            remedy=f"free some disk space, then macllm runs resume {shlex.quote(str(folder))}",
        ) from error


def _append_last(folder: Path, begun: bool, event: Stopped | RunFailed) -> None:
    """Write the end of a run that has begun; on a full disk its absence says the same."""
    if begun:
        with suppress(OSError):
            append(folder, event)


def _begin(folder: Path, config: TrainConfig, event: Prepared) -> None:
    # A run without a snapshot yet can be resumed as long as the folder for them is there.
    (folder / SNAPSHOTS).mkdir(exist_ok=True)
    settings, began = config.as_dict(), _began_with(folder, config)
    write_json(folder / SETTINGS_NAME, settings if began.items() <= settings.items() else {**settings, _BEGAN: began})
    registry.register(folder, config.as_dict())
    # Drop lines of steps after the snapshot: they will be written again.
    kept = [line for line in _lines(folder) if _is_kept(line, event.first_step)]
    write_text(folder / METRICS, "".join(kept))
    append(folder, event)


def follow(events: Generator[TrainEvent], on_event: Callable[[TrainEvent], None] | None) -> None:
    """Run to the end, and hand each event to `on_event`."""
    with closing(events) as stream:
        for event in stream:
            if on_event is not None:
                on_event(event)


def _lines(folder: Path) -> list[str]:
    path = folder / METRICS
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []


def _is_kept(line: str, first_step: int) -> bool:
    """True for a line of metrics.jsonl that a run from the snapshot of `first_step` does not write again."""
    try:
        event = json.loads(line)
        if event["event"] == Restarted.__name__:
            return True
        return 0 < first_step >= int(event.get("step", event.get("first_step", 0)))
    except (ValueError, TypeError, AttributeError, KeyError):  # an incomplete line
        return False

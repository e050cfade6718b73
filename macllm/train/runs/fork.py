"""Forks: a new run from a snapshot of another, with changed settings."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from macllm.errors import CheckpointError, UsageError
from macllm.files import read_json, sync, write_json

from ..config import SETTINGS_NAME, FinetuneConfig, PretrainConfig, TrainConfig
from ..config.training import over
from .folder import ENVIRONMENT, SNAPSHOTS
from .history import snapshots_of
from .registry import RegisteredRun, located, located_settings

_STATE, _MANIFEST = "state.json", "manifest.json"
# What the weights of a snapshot belong to; all else of a run's identity may be changed by a fork.
_FIXED = ("base", "adapted", "architecture")


def changed_config(parent: RegisteredRun, output: Path, sets: tuple[str, ...]) -> TrainConfig:
    """The settings of a run with `key=value` changes, for another folder. Raises: UsageError.

    Relative paths become those that they are for the run, and changed ones those in the current directory.
    """
    kind: type[TrainConfig] = FinetuneConfig if parent.command == "finetune" else PretrainConfig
    names = {item.name for item in dataclasses.fields(kind)} - {"resume", kind._folder}
    stored = {name: value for name, value in located_settings(parent).items() if name in names}
    if stored.get("iters"):  # then its epochs have no effect
        stored.pop("epochs", None)
    changed = {name.strip(): value.strip() for name, _, value in (text.partition("=") for text in sets)}
    kept = {name: value for name, value in over(stored, changed).items() if name not in changed}
    return kind.load(None, tuple(map(_here, sets)), **kept, **{kind._folder: str(output)})


def snapshot_of(parent: RegisteredRun, step: int | None) -> dict[str, Any]:
    """The snapshot of a step, or the newest. Raises: UsageError with the steps that there are."""
    found = {one["step"]: one for one in snapshots_of(parent.path)}
    if not found:
        raise UsageError(f"{parent.folder} has no snapshot to fork", remedy="macllm runs ls")
    if step is not None and step not in found:
        raise UsageError(
            f"{parent.folder} has no snapshot of step {step}", remedy=f"one of {', '.join(map(str, found))} after @"
        )
    return found[max(found) if step is None else step]


def fork(parent: RegisteredRun, snapshot: dict[str, Any], config: TrainConfig) -> None:
    """Write a folder that is resumed from the snapshot of another run.

    Files of weights are linked where that works. Losses of the other run are left out: they may be of other data.
    Raises: UsageError if no step is left; CheckpointError for a damaged snapshot; OSError.
    """
    step, folder = int(snapshot["step"]), Path(config.folder)
    if 0 < config.iters <= step:
        raise UsageError(f"no step is left after step {step}", cause=f"iters is {config.iters}", remedy="--set iters=N")
    source = Path(snapshot["path"])
    try:
        about, manifest = read_json(source / _STATE), read_json(source / _MANIFEST)
        about["run"] = {name: about["run"][name] for name in _FIXED if name in about["run"]}
        changed = next((name for name in manifest if _sha256(source / name) != manifest[name]["sha256"]), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(snapshot, str(error)) from error
    if changed:
        raise _damaged(snapshot, f"{changed} has changed since it was written")
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        _write_snapshot(source, folder / SNAPSHOTS / source.name, about, manifest)
        parents = {"run": parent.id, "folder": parent.folder, "step": step}
        write_json(folder / ENVIRONMENT, {"parent": parents})
        write_json(folder / SETTINGS_NAME, config.as_dict())
    except BaseException:
        _remove(folder, made)
        raise


def _write_snapshot(source: Path, target: Path, about: dict[str, Any], manifest: dict[str, Any]) -> None:
    """A copy of the snapshot in `source`, without the losses of its run."""
    target.mkdir(parents=True)
    for name in manifest:
        if name != _STATE:
            _link(source / name, target / name)
    window = dict.fromkeys(about["window"], 0) | {"metrics": {}}
    fresh = {"best_loss": None, "eval_loss": None, "window": window, "is_forked": True}
    about.pop("watch", None)
    write_json(target / _STATE, about | fresh)
    manifest[_STATE] = {"bytes": (target / _STATE).stat().st_size, "sha256": _sha256(target / _STATE)}
    write_json(target / _MANIFEST, manifest)
    sync(target)


def _remove(folder: Path, made: list[Path]) -> None:
    """Remove what a fork has written, and the folders that it made."""
    shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)
    with suppress(OSError):
        for name in (ENVIRONMENT, SETTINGS_NAME):
            (folder / name).unlink(missing_ok=True)
        for each in made:
            each.rmdir()


def _damaged(snapshot: dict[str, Any], cause: str) -> CheckpointError:
    return CheckpointError(
        f"{snapshot['path']} is damaged", cause=cause, remedy="the snapshot of another step: RUN@STEP"
    )


def _here(text: str) -> str:
    """A `key=value` whose path is relative to the current directory."""
    name, equals, value = text.partition("=")
    return f"{name}={located(name.strip(), value.strip(), Path())}" if equals else text


def _link(source: Path, target: Path) -> None:
    with suppress(OSError):
        target.hardlink_to(source)
        return
    shutil.copyfile(source, target)
    sync(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

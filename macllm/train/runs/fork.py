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
from ..config.training import PATHS
from .folder import ENVIRONMENT, SNAPSHOTS
from .history import snapshots_of
from .registry import RegisteredRun, read_settings

_STATE, _MANIFEST = "state.json", "manifest.json"
# What the weights of a snapshot belong to; all else of a run's identity may be changed by a fork.
_FIXED = ("base", "adapted", "architecture")


def changed_config(parent: RegisteredRun, output: Path, sets: tuple[str, ...]) -> TrainConfig:
    """The settings of a run with `key=value` changes, for another folder. Raises: UsageError."""
    kind: type[TrainConfig] = FinetuneConfig if parent.command == "finetune" else PretrainConfig
    names = {item.name for item in dataclasses.fields(kind)} - {"resume", kind._folder}
    changed = {text.partition("=")[0].strip() for text in sets}
    stored = {k: v for k, v in read_settings(parent.path).items() if k in names - changed}
    return kind.load(None, tuple(map(_here, sets)), **stored, **{kind._folder: str(output)})


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
    source, target = Path(snapshot["path"]), folder / SNAPSHOTS / Path(snapshot["path"]).name
    try:
        about, manifest = read_json(source / _STATE), read_json(source / _MANIFEST)
        identity = {name: about["run"][name] for name in _FIXED if name in about["run"]}
        files = [name for name in manifest if name != _STATE]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source} is damaged", cause=str(error)) from error
    target.mkdir(parents=True)
    for name in files:
        _link(source / Path(name).name, target / Path(name).name)
    window = dict.fromkeys(about["window"], 0) | {"metrics": {}}
    fresh = {"best_loss": None, "eval_loss": None, "window": window, "run": identity, "is_forked": True}
    about.pop("watch", None)
    write_json(target / _STATE, about | fresh)
    manifest[_STATE] = {"bytes": (target / _STATE).stat().st_size, "sha256": _sha256(target / _STATE)}
    write_json(target / _MANIFEST, manifest)
    sync(target)
    parents = {"run": parent.id, "folder": parent.folder, "step": step}
    write_json(folder / ENVIRONMENT, {"parent": parents})
    write_json(folder / SETTINGS_NAME, config.as_dict())


def _here(text: str) -> str:
    """A `key=value` whose path is relative to the current directory."""
    name, equals, value = text.partition("=")
    if name.strip() in PATHS and value.strip() and Path(value.strip()).exists():
        return f"{name}={Path(value.strip()).resolve()}"
    return name + equals + value


def _link(source: Path, target: Path) -> None:
    with suppress(OSError):
        target.hardlink_to(source)
        return
    shutil.copyfile(source, target)
    sync(target)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

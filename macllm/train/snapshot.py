"""Snapshots of a training run: crash-safe, and resumed bit for bit.

A snapshot is a folder that is renamed to its final name after its files and its manifest (size and SHA-256 of
each) are synchronized to disk. If a snapshot is damaged, the one before is used. A snapshot that takes the place of
another is interrupted between two renames at worst: the replaced one then gets its name back.
Random state needs no file: batches and dropout are functions of (seed, step).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import mlx.core as mx

from macllm.errors import CheckpointError, DoesNotFitError, MacllmError, UsageError
from macllm.files import occupy_standard_descriptors, read_json, sync, write_json

from .config import TrainConfig
from .config.data import INPUTS
from .contract import AnyBatch, Arrays, Loss, OptimizerState
from .spikes import Watch

_LEAST_FREE_BYTES = 1 << 20  # with less, a failed write is due to a full disk
_FORMAT = 2  # 1 had AdamW's two moments beside the weights
_KEYS = ("step", "slots", "count", "best_loss", "eval_loss", "window", "run")

_REPLACED = ".draft-replaced-"
BATCHES = ("batch_size", "grad_accumulation_steps")
"""Settings that a resumed run may change as long as their product, the rows of a step, stays the same."""
_WEIGHTS, _STATE, _MANIFEST = "weights.safetensors", "state.json", "manifest.json"
_KEPT = "kept.safetensors"  # what the source of batches keeps for the steps to come, if anything


@dataclass(frozen=True)
class Sums:
    """Sums over steps: of the loss, its units, gradient norms, supervised tokens, seconds and metrics."""

    numerator: float = 0.0
    denominator: float = 0.0
    norm: float = 0.0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def of(cls, loss: Loss, batch: AnyBatch) -> Self:
        """The sums of one micro-batch."""
        metrics = {name: _number(value) for name, value in loss.metrics.items()}
        return cls(_number(loss.numerator), loss.denominator, tokens=batch.num_target_tokens, metrics=metrics)

    def plus(self, more: Sums) -> Sums:
        """The sums over both."""
        both = {name: getattr(self, name) + getattr(more, name) for name in _ADDED}
        metrics = {k: self.metrics.get(k, 0.0) + more.metrics.get(k, 0.0) for k in {**self.metrics, **more.metrics}}
        return Sums(**both, metrics=metrics)

    def means(self) -> dict[str, float]:
        """The metrics per unit of the loss."""
        return {name: value / self.denominator for name, value in self.metrics.items()}


_ADDED = ("numerator", "denominator", "norm", "steps", "tokens", "seconds")


@dataclass(frozen=True)
class TrainState:
    """Immutable training state after `step` steps."""

    step: int
    weights: Arrays
    optimizer: OptimizerState
    best_loss: float | None = None
    eval_loss: float | None = None  # of these weights
    window: Sums = Sums()  # since the last report
    watch: Watch = field(default_factory=Watch)
    is_forked: bool = False  # from a snapshot of another run, and not saved in this one
    kept: Arrays = field(default_factory=dict[str, mx.array])  # by the source of batches, for the next step


class Snapshots:
    """The snapshots of one run in one folder: the newest `keep`, and the best one by validation loss.

    `identity` has what determines the run's weights. Snapshots of a version that lacked some of it have `defaults`.
    `began` are the `BATCHES` with which the run began, as long as no snapshot tells them.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        identity: dict[str, Any],
        defaults: dict[str, Any] | None = None,
        began: dict[str, int] | None = None,
    ) -> None:
        self.folder = folder
        self._keep = keep
        self._identity = json.loads(json.dumps(identity))
        self._defaults = json.loads(json.dumps(defaults or {}))
        self._began = began

    def step_rows(self, config: TrainConfig) -> tuple[int, int]:
        """The batch size and accumulation by which the rows of a step are chosen.

        They are those with which the run began, if both make steps of as many rows; `config` then says how many go
        through the model at once. Snapshots from now on record the run's own.
        """
        ours = {name: getattr(config, name) for name in BATCHES}
        theirs = next(filter(None, map(self._began_with, reversed(self._steps()))), self._began or ours)
        if math.prod(theirs.values()) != math.prod(ours.values()):
            theirs = ours  # another run, which `latest` refuses
        if ours.items() <= self._identity.items():
            self._identity |= theirs
        return theirs["batch_size"], theirs["grad_accumulation_steps"]

    def _began_with(self, step: int) -> dict[str, int]:
        """Batch size and accumulation in a snapshot; empty for a damaged one and for that of another run."""
        try:
            about = read_json(self.folder / _name(step) / _STATE)
            found = {name: int(about["run"][name]) for name in BATCHES}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return {} if about.get("is_forked") else found

    def save(self, state: TrainState) -> Path:
        """Write a snapshot, then remove old ones. Raises MacllmError if it cannot be written."""
        final = self.folder / _name(state.step)
        draft = self.folder / f".draft-{_name(state.step)}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._restore()
            self._remove_drafts()
            draft.mkdir()
            self._write(draft, state)
            if final.exists():  # the same step before its evaluation
                final.rename(self.folder / f"{_REPLACED}{_name(state.step)}")
            draft.rename(final)
            sync(self.folder)
            self._remove_drafts()
        except (OSError, RuntimeError) as error:
            is_full = self._is_full(draft, error)
            shutil.rmtree(draft, ignore_errors=True)
            self._restore()
            resume = f"macllm runs resume {shlex.quote(str(self.folder.parent))}"
            if is_full:
                cause = f"the disk of {self.folder} is full"
                raise DoesNotFitError(
                    f"cannot write the snapshot {final}", cause=cause, remedy=f"free some space, then {resume}"
                ) from error
            raise MacllmError(f"cannot write the snapshot {final}", cause=str(error), remedy=resume) from error
        self._prune(state.step, state.watch.kept)
        return final

    @staticmethod
    def _is_full(draft: Path, error: OSError | RuntimeError) -> bool:
        """True if the disk is full; MLX's RuntimeError does not say so."""
        if isinstance(error, OSError):
            return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        with suppress(OSError):
            return shutil.disk_usage(draft).free < _LEAST_FREE_BYTES
        return False

    def latest(self) -> TrainState | None:
        """The newest undamaged snapshot, None for an empty folder.

        Raises CheckpointError if all are damaged, UsageError if it belongs to another run.
        """
        damage: list[str] = []
        self._restore()
        for step in reversed(self._steps()):
            try:
                return self._read(self.folder / _name(step))
            except _DamagedError as error:
                damage.append(str(error))
        if damage:
            raise CheckpointError(
                f"all snapshots in {self.folder} are damaged",
                cause="; ".join(damage[:3]),
                remedy="a copy of them, or the same command without --resume and with another folder",
            )
        return None

    def at(self, step: int) -> TrainState:
        """The snapshot of a step. Raises CheckpointError if it is damaged, UsageError if of another run."""
        try:
            return self._read(self.folder / _name(step))
        except _DamagedError as error:
            raise CheckpointError(f"the snapshot of step {step} cannot be read", cause=str(error)) from error

    def best(self) -> TrainState | None:
        """The undamaged snapshot with the lowest validation loss, None if none was evaluated."""
        ranked = sorted((loss, step) for step, loss in self._losses().items())
        for _, step in ranked:
            try:
                return self._read(self.folder / _name(step))
            except _DamagedError:
                continue
        return None

    def _write(self, draft: Path, state: TrainState) -> None:
        slots = state.optimizer.slots
        mx.save_safetensors(str(draft / _WEIGHTS), state.weights)
        for name, arrays in slots.items():
            mx.save_safetensors(str(draft / _slot(name)), arrays)
        if state.kept:
            mx.save_safetensors(str(draft / _KEPT), state.kept)
        about = {
            "format": _FORMAT,
            "step": state.step,
            "slots": list(slots),
            "count": state.optimizer.count,
            "best_loss": state.best_loss,
            "eval_loss": state.eval_loss,
            "window": asdict(state.window),
            "watch": asdict(state.watch),
            "run": self._identity,
        }
        write_json(draft / _STATE, about)
        manifest = {}
        for name in (_WEIGHTS, *map(_slot, slots), *[_KEPT] * bool(state.kept), _STATE):
            sync(draft / name)
            manifest[name] = {"bytes": (draft / name).stat().st_size, "sha256": _sha256(draft / name)}
        write_json(draft / _MANIFEST, manifest)
        sync(draft)

    def _read(self, folder: Path) -> TrainState:
        files = _verify(folder)
        about = read_json(folder / _STATE)
        _check_format(about, folder)
        ours = self._identity
        if about.get("is_forked"):  # all but the model may differ
            ours = {name: value for name, value in ours.items() if name in about["run"]}
            _check_identity(about["run"], ours, folder)
        else:
            # Former versions recorded paths; what is read from them has fingerprints.
            theirs = {name: value for name, value in about["run"].items() if name in ours or name not in INPUTS}
            _check_identity({**self._defaults, **theirs}, ours, folder)
        if not {_WEIGHTS, *map(_slot, about["slots"])} <= files:
            raise _DamagedError(f"{folder} is not complete")
        slots = {name: _load(folder / _slot(name)) for name in about["slots"]}
        optimizer = OptimizerState(slots, about["count"])
        weights, window = _load(folder / _WEIGHTS), Sums(**about["window"])
        watch = Watch.from_json(about["watch"]) if "watch" in about else Watch()
        best, last, is_forked = about["best_loss"], about["eval_loss"], about.get("is_forked", False)
        kept = _load(folder / _KEPT) if _KEPT in files and not is_forked else {}  # a fork may have other answers
        return TrainState(about["step"], weights, optimizer, best, last, window, watch, is_forked, kept)

    def _steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        names = (p.name.removeprefix("step-") for p in self.folder.iterdir() if p.name.startswith("step-"))
        return sorted(int(n) for n in names if n.isdigit())

    def _losses(self) -> dict[int, float]:
        losses = dict[int, float]()
        for step in self._steps():
            with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one
                loss = read_json(self.folder / _name(step) / _STATE)["eval_loss"]
                if isinstance(loss, int | float):
                    losses[step] = loss
        return losses

    def _prune(self, newest: int, needed: frozenset[int]) -> None:
        """Remove all but `keep` up to the newest, the best and the needed ones; later ones are damaged."""
        every = self._steps()
        steps, losses = [step for step in every if step <= newest], self._losses()
        losses = {step: loss for step, loss in losses.items() if step <= newest}
        kept = {*steps[-self._keep :], *needed}
        if losses:
            kept.add(min(losses, key=lambda step: (losses[step], step)))
        for step in set(every) - kept:
            shutil.rmtree(self.folder / _name(step), ignore_errors=True)

    def _restore(self) -> None:
        """Give a replaced snapshot its name back if the process ended before the new one had it."""
        for replaced in self.folder.glob(f"{_REPLACED}*"):
            final = self.folder / replaced.name.removeprefix(_REPLACED)
            if not final.exists():
                with suppress(OSError):
                    replaced.rename(final)

    def _remove_drafts(self) -> None:
        for draft in self.folder.glob(".draft-*"):
            shutil.rmtree(draft, ignore_errors=True)


class _DamagedError(Exception):
    """A snapshot that does not match its manifest."""


def _number(array: mx.array | float) -> float:
    return cast("float", array.item()) if isinstance(array, mx.array) else array


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _slot(name: str) -> str:
    return f"optimizer.{name}.safetensors"


def _load(path: Path) -> Arrays:
    occupy_standard_descriptors()
    arrays = mx.load(str(path))
    if not isinstance(arrays, dict):
        raise _DamagedError(f"{path} has no named tensors")
    mx.eval(arrays)
    return arrays


def _verify(folder: Path) -> set[str]:
    """Check the files of a snapshot against its manifest, and return their names."""
    try:
        manifest = read_json(folder / _MANIFEST)
        for name, entry in manifest.items():
            path = folder / name
            if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
                raise _DamagedError(f"{path} has changed since it was written")
        if _STATE not in manifest:
            raise _DamagedError(f"{folder} is not complete")
        return set(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"{folder}: {error}") from error


def _check_format(about: dict[str, Any], folder: Path) -> None:
    theirs = about.get("format")
    missing = [name for name in _KEYS if name not in about]
    if theirs != _FORMAT or missing:
        cause = f"it has no {missing[0]}" if theirs == _FORMAT else f"its format is {theirs}, not {_FORMAT}"
        raise CheckpointError(
            f"{folder} is a snapshot of another version of macllm",
            cause=cause,
            remedy="begin the run again in another folder, or finish it with the version that began it",
        )


def _check_identity(theirs: dict[str, Any], ours: dict[str, Any], folder: Path) -> None:
    changed = [k for k in sorted({*theirs, *ours}) if theirs.get(k) != ours.get(k)]
    if changed:
        cause = "; ".join(f"{k} was {theirs.get(k)!r}, is {ours.get(k)!r}" for k in changed[:4])
        raise UsageError(
            f"{folder.parent.parent} has another run",
            cause=cause,
            remedy="the settings and data of that run, macllm runs fork with --set for others, or another folder"
            + ("; other batches of as many rows in each step" if not {*BATCHES}.isdisjoint(changed) else ""),
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

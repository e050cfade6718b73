"""Bugs in evaluation, snapshots and resumed runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from macllm.train import loop, snapshot
from macllm.train.contract import OptimizerState
from macllm.train.snapshot import Snapshots
from macllm.train.sources import Rows
from tests.train import test_loop

from .mutant import Mutant, Patch, claim, in_folder


def shuffle_on_resuming(patch: Patch) -> None:
    """Each process has an order of its own."""
    init, processes = Rows.__init__, itertools.count()
    patch.setattr(Rows, "__init__", lambda rows, *_, seed, **rest: init(rows, *_, seed=seed + next(processes), **rest))


def begin_data_again(patch: Patch) -> None:
    """The position in the data is lost: each process begins with the first batch."""
    batches = Rows.batches

    def counted(rows: Any, step: int, model: Any) -> Any:
        rows.done = getattr(rows, "done", -1) + 1
        return batches(rows, rows.done, model)

    patch.setattr(Rows, "batches", counted)


def resumed(change: Callable[[OptimizerState], OptimizerState]) -> Callable[[Patch], object]:
    """Change the optimizer's state in the snapshot that a run resumes."""

    def put(patch: Patch) -> None:
        latest = Snapshots.latest

        def changed(kept: Snapshots) -> Any:
            state = latest(kept)
            return state and replace(state, optimizer=change(state.optimizer))

        patch.setattr(Snapshots, "latest", changed)

    return put


def without_moments(state: OptimizerState) -> OptimizerState:
    """Zeros in all slots."""
    return replace(
        state, slots={slot: {k: mx.zeros_like(v) for k, v in of.items()} for slot, of in state.slots.items()}
    )


def choose_best_by_training_loss(patch: Patch) -> None:
    """The loss of the last report decides which weights are best."""
    evaluate = loop.Trainer._evaluate

    def told(trainer: Any) -> Any:
        yield from evaluate(trainer)
        if trainer.state.step and math.isfinite(trainer._last_loss):
            trainer.state = replace(trainer.state, eval_loss=trainer._last_loss)

    patch.setattr(loop.Trainer, "_evaluate", told)


def _damaged(folder: Path) -> None:
    kept = test_loop.snapshots(folder)
    kept.save(test_loop.state_of(1))
    path = kept.save(test_loop.state_of(2)) / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of a weight
    path.write_bytes(data)
    latest = kept.latest()
    assert latest is not None
    assert latest.step == 1


def _synced(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_loop.test_a_snapshot_is_synced_before_its_rename(folder, patch)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


RESUMED = in_folder(test_loop.test_a_closed_and_resumed_run_ends_with_the_same_weights, 3)
EVALUATION = claim(test_loop.test_evaluation_runs_before_the_first_step_at_its_interval_and_after_the_last)
BEST = in_folder(test_loop.test_every_snapshot_records_the_best_loss_also_after_resuming)
KEPT = in_folder(test_loop.test_the_newest_snapshots_and_the_best_one_are_kept)

MUTANTS = [
    Mutant("dropout in evaluation", lambda patch: patch.setattr(nn.Module, "eval", lambda module: module), EVALUATION),
    Mutant("best by training loss", choose_best_by_training_loss, BEST),
    Mutant("last is best", lambda patch: patch.setattr(Snapshots, "best", Snapshots.latest), KEPT),
    Mutant("resuming shuffles again", shuffle_on_resuming, RESUMED),
    Mutant("resuming begins the data again", begin_data_again, RESUMED),
    Mutant("resuming loses moments", resumed(without_moments), RESUMED),
    Mutant("resuming loses the count of updates", resumed(partial(replace, count=0)), RESUMED),
    Mutant("resuming loses the random state", lambda patch: patch.setattr(mx.random, "seed", lambda _: None), RESUMED),
    Mutant("snapshots are not verified", lambda patch: patch.setattr(snapshot, "_verify", _names), _damaged),
    Mutant("snapshots are not synced", lambda patch: patch.setattr(snapshot, "sync", lambda _: None), _synced),
]

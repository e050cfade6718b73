"""Snapshots that are replaced, damaged, or cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from macllm.errors import CheckpointError, MacllmError
from macllm.train.contract import OptimizerState
from macllm.train.snapshot import Snapshots, TrainState


def state(step: int, loss: float | None = None) -> TrainState:
    return TrainState(step, {"w": mx.array([float(step)])}, OptimizerState({}, step), eval_loss=loss)


def kept(snapshots: Snapshots) -> list[str]:
    return sorted(path.name for path in snapshots.folder.iterdir())


def newest(snapshots: Snapshots) -> int | None:
    found = snapshots.latest()
    return found and found.step


def damage(snapshots: Snapshots, step: int) -> None:
    (snapshots.folder / f"step-{step:08d}/weights.safetensors").write_bytes(b"")


@pytest.mark.parametrize("failure", [SystemExit, OSError])
def test_a_snapshot_whose_replacement_is_interrupted_between_two_renames_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    snapshots = Snapshots(tmp_path, 1, {})
    snapshots.save(state(3))
    rename, calls = Path.rename, 0

    def second(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise failure("the end of the process")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", second)
        with pytest.raises((SystemExit, MacllmError)):
            snapshots.save(state(3, loss=1.0))
    assert newest(snapshots) == 3
    snapshots.save(state(3, loss=1.0))
    assert kept(snapshots) == ["step-00000003"]
    assert json.loads((tmp_path / "step-00000003/state.json").read_text())["eval_loss"] == 1.0


def test_a_damaged_newer_snapshot_does_not_take_the_place_of_those_saved_after_it(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, 1, {})
    snapshots.save(state(3, loss=2.0))
    snapshots.save(state(6, loss=9.0))
    damage(snapshots, 6)
    assert newest(snapshots) == 3
    snapshots.save(state(4))
    assert kept(snapshots) == ["step-00000003", "step-00000004"]
    assert newest(snapshots) == 4
    damage(snapshots, 3)
    damage(snapshots, 4)
    with pytest.raises(CheckpointError, match=r"are damaged\n.*\ntry: .*another folder"):
        snapshots.latest()

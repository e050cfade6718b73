"""Spikes and gradients that are not finite: back to the last good snapshot, also on resuming."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlx.utils import tree_flatten

from macllm.errors import CheckpointError, MacllmError, UsageError
from macllm.train import power
from macllm.train.config import TrainConfig
from macllm.train.contract import Loss
from macllm.train.events import Advanced, Continued, Paused, Saved, Skipped, Step, TrainEvent
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import Batch
from macllm.train.power import draws_from_battery, on_battery
from macllm.train.spikes import SpikeRules, Watch
from tests.train.test_loop import CLM, CONFIG, ROWS, Altered, digest, fit, snapshots
from tests.train.toy import ToyLM

RULES = SpikeRules(8.0, 3, 3)
LONG = replace(CONFIG, iters=28, save_every=8, spike_threshold=8.0, spike_patience=3)
SPIKE = {20: 40.0, 21: 40.0, 22: 40.0}


def trainer(factors: Mapping[int, float], folder: Path | None, config: TrainConfig = CONFIG) -> Trainer[Batch]:
    """A trainer whose loss is multiplied at some steps, which count from 0."""

    def altered(model: Any, batch: Batch) -> Loss:
        loss, weight, metrics = CLM.loss(model, batch)
        return Loss(loss * factors.get(made.state.step, 1.0), weight, metrics)

    kept = snapshots(folder, config) if folder else None
    made: Trainer[Batch] = Trainer.of(ToyLM(dropout=0.1), Altered(by=altered), config, ROWS, kept)
    return made


def skipped(events: list[TrainEvent]) -> list[tuple[int, int]]:
    return [(event.first, event.step) for event in events if isinstance(event, Skipped)]


def run(
    factors: Mapping[int, float], folder: Path | None, config: TrainConfig = CONFIG
) -> tuple[str, list[TrainEvent]]:
    made = trainer(factors, folder, config)
    events = list(made.run())
    return digest(made.model), events


def test_a_spike_that_lasts_goes_back_to_the_last_good_snapshot_and_skips_the_steps_since(tmp_path: Path) -> None:
    made, seen = trainer(SPIKE, tmp_path, LONG), list[TrainEvent]()
    for event in made.run():
        seen.append(event)
        if isinstance(event, Skipped):
            good = snapshots(tmp_path, LONG).at(16)
            assert made.state.step == 23
            assert all(bool((good.weights[name] == w).all()) for name, w in tree_flatten(made.model.parameters()))
            assert made.state.optimizer.count == 16
    assert skipped(seen) == [(17, 23)]
    last = snapshots(tmp_path, LONG).latest()
    assert last is not None
    assert last.watch.skipped == ((17, 23),)
    assert last.optimizer.count == 28 - 7
    assert [event.step for event in seen if isinstance(event, Step)][-1] == 28


def test_a_run_without_one_finite_gradient_ends_in_an_error_and_exports_nothing(tmp_path: Path) -> None:
    config = replace(CONFIG, iters=3, rollbacks=9)
    made, exported = trainer(dict.fromkeys(range(3), math.nan), tmp_path, config), list[Path]()
    for _ in range(2):  # resumed, too
        with pytest.raises(MacllmError, match="nothing was trained"):
            list(made.run(lambda: exported.append(tmp_path) or tmp_path))
        made = trainer({}, tmp_path, config)
    assert not exported
    events = list(trainer({0: math.nan, 2: math.nan}, None, config).run(lambda: exported.append(tmp_path) or tmp_path))
    assert skipped(events) == [(1, 1), (3, 3)]
    assert exported


@pytest.mark.parametrize(
    "factors",
    [{20: 40.0, 21: 40.0}, {19: 40.0, 21: 40.0, 23: 40.0, 25: 40.0}, {20: 1.5, 21: 1.5, 22: 1.5}],
    ids=["short", "apart", "small"],
)
def test_steps_that_are_no_lasting_spike_change_nothing(tmp_path: Path, factors: dict[int, float]) -> None:
    weights, events = run(factors, tmp_path, LONG)
    assert skipped(events) == []
    assert weights == run(factors, None, replace(LONG, spike_threshold=0.0))[0]


@pytest.mark.parametrize(
    ("factors", "config"),
    [(SPIKE, LONG), ({9: math.nan, 13: math.inf}, replace(LONG, iters=16, save_every=4, spike_threshold=0.0))],
    ids=["spike", "not finite"],
)
def test_a_run_killed_around_a_rollback_ends_with_the_same_bytes(
    tmp_path: Path, factors: dict[int, float], config: TrainConfig
) -> None:
    """A copy of the snapshots at any moment is what a kill leaves."""
    config = replace(config, keep=1, steps_per_report=2)
    made, seen = trainer(factors, tmp_path, config), list[TrainEvent]()
    for number, event in enumerate(made.run()):
        seen.append(event)
        if isinstance(event, Saved | Skipped):
            shutil.copytree(tmp_path / "snapshots", tmp_path / f"{number}/snapshots")
    assert skipped(seen)
    for folder in tmp_path.glob("*/snapshots"):
        again, events = run(factors, folder.parent, config)
        assert again == digest(made.model)
        assert set(skipped(events)) <= set(skipped(seen))


def test_an_interruption_that_saves_moves_no_snapshot_to_go_back_to(tmp_path: Path) -> None:
    whole, events = run(SPIKE, tmp_path / "whole", LONG)
    for stop in (17, 21, 22):
        made = trainer(SPIKE, tmp_path / str(stop), replace(LONG, keep=1))
        stream = made.run()
        next(event for event in stream if isinstance(event, Step) and event.step == stop)
        stream.close()
        resumed, more = run(SPIKE, tmp_path / str(stop), replace(LONG, keep=1))
        assert resumed == whole
        assert skipped(more) == skipped(events)


@pytest.mark.parametrize("rollbacks", [3, 0], ids=["goes back", "is an error"])
def test_an_interruption_between_a_spike_and_its_rollback_loses_nothing(tmp_path: Path, rollbacks: int) -> None:
    config = replace(LONG, rollbacks=rollbacks)
    made = trainer(SPIKE, tmp_path / "stopped", config)
    stream = made.run()
    next(event for event in stream if isinstance(event, Advanced) and event.work == "training" and event.done == 23)
    stream.close()
    if not rollbacks:
        with pytest.raises(MacllmError, match="up to step 23"):
            run(SPIKE, tmp_path / "stopped", config)
        return
    whole, events = run(SPIKE, tmp_path / "whole", config)
    resumed, more = run(SPIKE, tmp_path / "stopped", config)
    assert (resumed, skipped(more)) == (whole, skipped(events))


def test_a_gradient_that_is_not_finite_skips_its_step_without_a_snapshot_and_ends_the_run_in_the_end(
    tmp_path: Path,
) -> None:
    assert skipped(run({4: math.nan, 7: math.nan}, None)[1]) == [(5, 5), (8, 8)]
    bad = dict.fromkeys(range(5, 12), math.nan)
    with pytest.raises(MacllmError, match="the gradient of step 9 is not finite"):
        run(bad, None)
    with pytest.raises(MacllmError, match="the gradient of step 6 is not finite"):
        run(bad, None, replace(CONFIG, rollbacks=0))
    with pytest.raises(MacllmError, match="the gradient of step 9 is not finite"):
        run(bad, tmp_path)


def test_a_good_snapshot_gives_new_rollbacks() -> None:
    watch = Watch(good=4, rollbacks=2, waiting=8)
    assert watch.seen(10, 1.0, 1.0, RULES).rollbacks == 2
    assert watch.seen(11, 1.0, 1.0, RULES) == Watch(losses=(1.0,), norms=(1.0,), good=8, rollbacks=0)


def test_a_snapshot_is_good_only_after_steps_without_a_spike() -> None:
    watch = Watch(losses=(1.0, 1.1) * 10, norms=(1.0,) * 20, good=4).saved(8)
    assert watch.kept == {4, 8}
    assert watch.seen(9, 90.0, 1.0, RULES).kept == {4}
    assert watch.seen(9, 90.0, 1.0, RULES).saved(12).kept == {4}
    assert watch.seen(9, 1.0, 90.0, RULES).streak == 1
    assert watch.seen(9, 90.0, 1.0, replace(RULES, threshold=0.0)).streak == 0


def test_a_watch_survives_json_exactly() -> None:
    watch = Watch((0.1, 1 / 3), (2e-30,), 1, 4, 8, 2, ((3, 5), (7, 7)))
    assert Watch.from_json(json.loads(json.dumps(watch.__dict__))) == watch


def test_a_threshold_is_refused_where_no_snapshot_could_be_gone_back_to(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="spike_threshold has no effect\ncause: save_every is 0"):
        replace(LONG, save_every=0)
    with pytest.raises(UsageError, match="28 steps, and could not go back before step 29"):
        trainer({}, tmp_path, replace(LONG, save_every=23))
    trainer({}, tmp_path, replace(LONG, save_every=22))


def test_rows_without_a_unit_of_loss_are_an_error(tmp_path: Path) -> None:
    def nothing(model: Any, batch: Batch) -> Loss:
        return Loss(CLM.loss(model, batch).numerator * 0, 0.0)

    with pytest.raises(MacllmError, match="the rows of step 1 have nothing to learn from"):
        list(fit(ToyLM(), Altered(by=nothing), CONFIG))
    with pytest.raises(MacllmError, match="the validation rows have nothing to evaluate"):
        list(fit(ToyLM(), Altered(by=nothing), CONFIG, replace(ROWS, valid=ROWS.train[:4])))


@pytest.mark.parametrize(
    ("change", "said"), [({"window": None}, "it has no window"), ({"format": 1}, "its format is 1")]
)
def test_a_snapshot_of_an_earlier_version_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    run({}, tmp_path)
    kept = snapshots(tmp_path)
    (folder,) = (tmp_path / "snapshots").glob("step-*12")
    about = json.loads((folder / "state.json").read_text())
    about = {name: value for name, value in {**about, **change}.items() if value is not None or name not in change}
    kept.at(12)
    (folder / "state.json").write_text(json.dumps(about))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["state.json"]
    from macllm.train.snapshot import _sha256

    size = (folder / "state.json").stat().st_size
    manifest["state.json"] = {"bytes": size, "sha256": _sha256(folder / "state.json")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"another version of macllm\ncause: {said}"):
        kept.latest()


def test_a_pause_on_battery_power_saves_and_changes_no_bit(tmp_path: Path) -> None:
    config = replace(CONFIG, pause_on_battery=True)
    made = trainer({}, tmp_path, config)
    answers, slept = iter([False, True, True, True, False, *[False] * 40]), []
    clock = iter(range(0, 10_000, 20))
    made.battery = replace(
        made.battery, on_battery=lambda: next(answers), clock=lambda: next(clock), sleep=slept.append
    )
    events = list(made.run())
    at = next(n for n, event in enumerate(events) if isinstance(event, Paused))
    assert isinstance(events[at - 1], Saved)
    assert events[at - 1].step == events[at].step == 2
    assert isinstance(events[at + 1], Continued)
    assert len(slept) == 2
    assert digest(made.model) == run({}, None)[0]
    assert skipped(events) == []


def test_battery_power_is_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power.sys, "platform", "linux")
    assert not on_battery(tmp_path / "none")
    for name, kind, status in (
        ("AC", "Mains", ""),
        ("BAT0", "Battery", "Charging"),
        ("mouse", "Battery", "Discharging"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "type").write_text(f"{kind}\n")
        (tmp_path / name / "status").write_text(f"{status}\n")
    (tmp_path / "mouse/scope").write_text("Device\n")
    assert not on_battery(tmp_path)
    (tmp_path / "BAT0/status").write_text("Discharging\n")
    assert on_battery(tmp_path)
    assert draws_from_battery("Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t90%; discharging;")
    assert not draws_from_battery("Now drawing from 'AC Power'\n -InternalBattery-0 (id=1)\t90%; charged;")

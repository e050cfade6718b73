from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from macllm.errors import CheckpointError, DoesNotFitError, MacllmError, UsageError
from macllm.train import loop, parameters
from macllm.train.config import TrainConfig
from macllm.train.contract import Loss, OptimizerState
from macllm.train.data import Dataset
from macllm.train.events import Advanced, Counts, Evaluated, Finished, Prepared, Saved, Step, TrainEvent
from macllm.train.loop import Trainer, total_steps
from macllm.train.objectives.clm import Batch, CausalLM, collate
from macllm.train.optim import AdamW
from macllm.train.passes import Passes
from macllm.train.snapshot import Snapshots, TrainState
from macllm.train.sources import Rows, Validation
from tests.train.toy import ToyLM, arithmetic_rows

CLM = CausalLM()
ROWS = Dataset(arithmetic_rows(30), [], Counts())
CONFIG = TrainConfig(
    data="x", iters=12, batch_size=4, learning_rate=1e-2, warmup=0.2, steps_per_report=1, steps_per_eval=4, save_every=3
)


def digest(model: nn.Module) -> str:
    seen = hashlib.sha256()
    for name, array in sorted(tree_flatten(model.parameters())):
        seen.update(name.encode() + np.array(array).tobytes())
    return seen.hexdigest()


def snapshots(folder: Path, config: TrainConfig = CONFIG) -> Snapshots:
    return Snapshots(folder / "snapshots", config.keep, config.reproducibility_fields())


def fit(
    model: nn.Module,
    objective: Any,
    config: TrainConfig,
    rows: Dataset[Any] = ROWS,
    kept: Snapshots | None = None,
) -> Generator[TrainEvent]:
    """The events between the first and the last of a run."""
    with closing(Trainer.of(model, objective, config, rows, kept).run()) as events:
        for event in events:
            if not isinstance(event, Prepared | Finished):
                yield event


@dataclass(frozen=True)
class Altered(CausalLM):
    """The objective with another loss, which is a function of the model and the batch."""

    by: Any = None

    def loss(self, model: Any, batch: Batch) -> Loss:
        return self.by(model, batch)


def gradient(model: nn.Module, batches: list[Batch]) -> dict[str, np.ndarray]:
    """Gradient of the summed loss divided by the summed weight, as in the loop."""
    total, weight = None, 0.0
    for batch in batches:
        (_, w, _), tree = nn.value_and_grad(model, lambda b: CLM.loss(model, b))(batch)
        flat = dict(tree_flatten(tree))
        total = flat if total is None else {k: total[k] + g for k, g in flat.items()}
        weight += w
    assert total is not None
    return {k: np.array(g) / weight for k, g in total.items()}


def test_the_loss_equals_its_definition_in_float64() -> None:
    model, rows = ToyLM(), arithmetic_rows(24, seed=3)
    assert any((row.tokens[row.loss_mask] == 0).any() for row in rows)  # as a token of the text
    batch = collate(rows)
    logits = np.array(model.logits(model.hidden(mx.array(batch.inputs)))).astype(np.float64)
    total = 0.0
    for i, row in enumerate(rows):
        for t in range(len(row) - 1):
            if row.loss_mask[t + 1]:
                total += np.log(np.exp(logits[i, t]).sum()) - logits[i, t, row.tokens[t + 1]]
    loss, weight, _ = CLM.loss(model, batch)
    assert weight == sum(int(r.loss_mask.sum()) for r in rows)
    assert loss.item() == pytest.approx(total, rel=1e-6)


def test_accumulated_gradients_equal_those_of_one_batch() -> None:
    model, rows = ToyLM(), arithmetic_rows(8, seed=1)
    whole = gradient(model, [collate(rows)])
    parts = gradient(model, [collate(rows[:1]), collate(rows[1:6]), collate(rows[6:])])
    for name, g in whole.items():
        np.testing.assert_allclose(parts[name], g, rtol=0, atol=1e-6 * np.abs(g).max())


def test_the_mean_of_micro_batch_means_is_another_gradient() -> None:
    model, rows = ToyLM(), arithmetic_rows(8, seed=1)
    whole = gradient(model, [collate(rows)])
    parts = [gradient(model, [collate(part)]) for part in (rows[:1], rows[1:6], rows[6:])]
    name = "mix.weight"
    wrong = sum(p[name] for p in parts) / 3
    assert np.abs(wrong - whole[name]).max() > 0.1 * np.abs(whole[name]).max()


def train(config: TrainConfig, dropout: float = 0.0, where: Path | None = None) -> tuple[ToyLM, list[TrainEvent]]:
    model = ToyLM(dropout=dropout)
    events = fit(model, CLM, config, ROWS, snapshots(where, config) if where else None)
    return model, [event for event in events if not isinstance(event, Advanced)]


def test_micro_batches_give_the_weights_of_whole_batches() -> None:
    whole, _ = train(replace(CONFIG, batch_size=30))
    parts, _ = train(replace(CONFIG, batch_size=5, grad_accumulation_steps=6))
    for (_, a), (_, b) in zip(tree_flatten(whole.parameters()), tree_flatten(parts.parameters()), strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=0, atol=2e-5)


def test_a_run_equals_its_definition_in_float64() -> None:
    """Accumulation, clipping, warm-up, cosine, AdamW and reports; only the gradients are shared."""
    config = replace(
        CONFIG, iters=6, batch_size=3, grad_accumulation_steps=2, max_grad_norm=1.0, weight_decay=0.5,
        warmup=0.3, min_lr_ratio=0.2, beta2=0.99, steps_per_report=2,
    )  # fmt: skip
    trained, events = train(config)
    literal, source = ToyLM(), Rows(CLM, ROWS.train, batch_size=3, accumulation=2, seed=config.seed)
    weights = {k: np.array(w).astype(np.float64) for k, w in tree_flatten(literal.parameters())}
    mean, square = ({k: np.zeros_like(w) for k, w in weights.items()} for _ in range(2))
    losses, tokens, norms, rates = [], [], [], []
    for step in range(6):
        micro = list(source.batches(step, literal))
        losses.append(sum(CLM.loss(literal, batch)[0].item() for batch in micro))
        tokens.append(sum(batch.num_target_tokens for batch in micro))
        gradients = {k: g.astype(np.float64) for k, g in gradient(literal, micro).items()}
        norms.append(math.sqrt(sum((g * g).sum() for g in gradients.values())))
        rates.append(1e-2 * ((step + 1) / 3 if step < 2 else 0.2 + 0.4 * (1 + math.cos(math.pi * (step - 2) / 3))))
        for name, g in gradients.items():
            g = g / max(1.0, norms[-1])
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.99 * square[name] + 0.01 * g * g
            weights[name] *= 1 - rates[-1] * 0.5 * (name == "mix.weight")
            ahead, spread = mean[name] / (1 - 0.9 ** (step + 1)), square[name] / (1 - 0.99 ** (step + 1))
            weights[name] -= rates[-1] * ahead / (np.sqrt(spread) + 1e-8)
        literal.update(tree_unflatten([(k, mx.array(w.astype(np.float32))) for k, w in weights.items()]))
    assert max(norms) > 1.5
    for name, got in tree_flatten(trained.parameters()):
        np.testing.assert_allclose(np.array(got), weights[name], rtol=0, atol=2e-5, err_msg=name)
    assert [e.step for e in events] == [2, 4, 6]
    for event, first in zip(events, (0, 2, 4), strict=True):
        two = slice(first, first + 2)
        assert event.loss == pytest.approx(sum(losses[two]) / sum(tokens[two]), rel=1e-5)
        assert event.grad_norm == pytest.approx(sum(norms[two]) / 2, rel=1e-4)
        assert event.learning_rate == pytest.approx(rates[first + 1], rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"iters": 7, "epochs": 99.0, "grad_accumulation_steps": 4}, 7),
        ({"iters": 0, "epochs": 2.0}, 16),
        ({"iters": 0, "epochs": 2.5}, 20),
        ({"iters": 0, "epochs": 1.1}, 9),
        ({"iters": 0, "epochs": 0.01}, 1),
    ],
)
def test_the_length_of_a_run_counts_optimizer_steps(settings: dict[str, Any], steps: int) -> None:
    assert total_steps(replace(CONFIG, **settings), 8) == steps


@pytest.mark.parametrize(
    ("rows", "size", "accumulation", "epochs"),
    [(5, 1, 2, 1), (11, 1, 8, 1), (2, 1, 8, 3), (3, 1, 2, 2), (20, 4, 4, 1), (10, 2, 4, 3), (7, 3, 1, 2), (1, 4, 4, 2)],
)
@pytest.mark.parametrize("by_iters", [False, True])
def test_every_row_is_trained_on_once_an_epoch(
    rows: int, size: int, accumulation: int, epochs: int, by_iters: bool
) -> None:
    seen: list[int] = []

    class Noting(CausalLM):
        def collate(self, examples: Any, random: np.random.Generator) -> Batch:
            seen.extend(int(e.where) for e in examples)
            return super().collate(examples, random)

    examples = [replace(e, where=str(i)) for i, e in enumerate(arithmetic_rows(rows))]
    per_epoch = -(-rows // (size * accumulation))
    length = {"iters": epochs * per_epoch} if by_iters else {"iters": 0, "epochs": float(epochs)}
    config = replace(CONFIG, batch_size=size, grad_accumulation_steps=accumulation, **length)
    events = list(fit(ToyLM(), Noting(), config, Dataset(examples, [], Counts())))
    assert events[-1].step == epochs * per_epoch
    for epoch in range(epochs):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_training_lowers_the_loss_to_a_third() -> None:
    _, events = train(replace(CONFIG, iters=150))
    losses = [e.loss for e in events if isinstance(e, Step)]
    first, weight, _ = CLM.loss(ToyLM(), collate(ROWS.train))
    assert sum(losses[-10:]) / 10 < first.item() / weight / 3
    assert all(isinstance(e, Step) for e in events)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    assert digest(train(CONFIG, dropout=0.3)[0]) == digest(train(CONFIG, dropout=0.3)[0])
    assert digest(train(CONFIG, dropout=0.3)[0]) != digest(train(replace(CONFIG, seed=1), dropout=0.3)[0])


@pytest.mark.parametrize("stop", [1, 3, 7, 11])
def test_a_closed_and_resumed_run_ends_with_the_same_weights(tmp_path: Path, stop: int) -> None:
    config = replace(CONFIG, grad_accumulation_steps=2)
    straight, events = train(config, dropout=0.3)
    stream = fit(ToyLM(dropout=0.3), CLM, config, ROWS, snapshots(tmp_path, config))
    for event in stream:
        if isinstance(event, Step) and event.step == stop:
            break
    stream.close()
    resumed = ToyLM(dropout=0.3, seed=99)
    mx.random.seed(12345)
    rest = list(fit(resumed, CLM, config, ROWS, snapshots(tmp_path, config)))
    assert digest(resumed) == digest(straight)
    losses = {e.step: e.loss for e in events if isinstance(e, Step)}
    assert {e.step: e.loss for e in rest if isinstance(e, Step)} == {s: losses[s] for s in losses if s > stop}


def test_a_run_resumed_with_other_micro_batches_takes_the_same_rows_in_each_step(tmp_path: Path) -> None:
    straight, _ = train(replace(CONFIG, grad_accumulation_steps=2))
    resumed, rows, tokens = ToyLM(), replace(ROWS, valid=arithmetic_rows(30, seed=9)), set[int]()
    for stop, size, count in ((5, 4, 2), (7, 2, 4), (9, 8, 1), (12, 4, 2)):
        config = replace(CONFIG, batch_size=size, grad_accumulation_steps=count, resume=True, val_batches=2)
        for event in (events := fit(resumed, CLM, config, rows, snapshots(tmp_path, config))):
            tokens |= {event.tokens} if isinstance(event, Evaluated) else set()
            if isinstance(event, Step) and event.step == stop:
                break
        events.close()
    assert len(tokens) == 1  # of the same sample in every evaluation
    want = dict(tree_flatten(straight.parameters()))
    for name, weight in tree_flatten(resumed.parameters()):
        np.testing.assert_allclose(np.array(weight), np.array(want[name]), rtol=0, atol=1e-5, err_msg=name)
    other = replace(CONFIG, batch_size=2, grad_accumulation_steps=3)
    with pytest.raises(UsageError, match="as many rows in each step"):
        list(fit(ToyLM(), CLM, other, ROWS, snapshots(tmp_path, other)))


def told(events: list[TrainEvent]) -> list[tuple[Any, ...]]:
    """Reports and evaluations, without times and memory."""
    steps = [(e.step, e.loss, e.learning_rate, e.grad_norm) for e in events if isinstance(e, Step)]
    return [*steps, *((e.step, e.loss, e.tokens, e.best) for e in events if isinstance(e, Evaluated))]


@pytest.mark.parametrize("save_every", [2, 50])
def test_a_run_stopped_after_any_event_reports_and_evaluates_as_one_that_was_not(
    tmp_path: Path, save_every: int
) -> None:
    rows = replace(ROWS, valid=arithmetic_rows(7, seed=9))
    config = replace(CONFIG, iters=6, steps_per_report=4, steps_per_eval=2, save_every=save_every, keep=99)
    straight = ToyLM(dropout=0.2)
    events = list(fit(straight, CLM, config, rows))
    whole = list(fit(ToyLM(dropout=0.2), CLM, config, rows, snapshots(tmp_path / "whole", config)))
    for number, last in enumerate(whole):
        kept = snapshots(tmp_path / str(number), config)
        with closing(fit(ToyLM(dropout=0.2), CLM, config, rows, kept)) as stream:
            seen = list(islice(stream, number + 1))
        begun = kept.latest() is not None
        resumed = ToyLM(dropout=0.2, seed=7 if begun else 0)
        seen = seen * begun + list(fit(resumed, CLM, config, rows, kept))
        assert sorted(told(seen)) == sorted(told(events)), last
        assert digest(resumed) == digest(straight), last
        best, expected = kept.best(), snapshots(tmp_path / "whole", config).best()
        assert best is not None
        assert expected is not None
        assert (best.step, best.eval_loss) == (expected.step, expected.eval_loss), last


def test_weights_that_are_not_finite_are_neither_saved_nor_exported(tmp_path: Path) -> None:
    exported: list[str] = []

    class Overflowing(AdamW):
        def update(self, weights: Any, gradients: Any, state: Any, rate: float, scale: mx.array) -> Any:
            new, after = super().update(weights, gradients, state, rate, scale)
            return ({k: w * math.inf for k, w in new.items()} if after.count == 8 else new), after

    def export() -> Path:
        exported.append(digest(model))
        return tmp_path

    model, config = ToyLM(), replace(CONFIG, iters=8, save_every=6)
    source = Rows(CLM, ROWS.train, batch_size=4, accumulation=1, seed=0)
    validation = Validation(CLM, [], batch_size=4, most=-1, seed=0)
    adam = Overflowing(config.beta1, config.beta2, config.epsilon, 0.0)
    with pytest.raises(MacllmError, match="the weights after step 8 are not finite"):
        list(Trainer(Passes(model, CLM, source, validation), adam, config, snapshots(tmp_path, config)).run(export))
    kept = snapshots(tmp_path, config).latest()
    assert kept is not None
    assert kept.step == 6
    model.update(tree_unflatten(list(kept.weights.items())))
    assert exported == [digest(model)]


def test_a_validation_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    rows = replace(ROWS, valid=arithmetic_rows(7, seed=9))
    objective, trainers = objective_with_losses({0: 1.0, 4: math.nan})
    trainers.append(Trainer.of(ToyLM(), objective, CONFIG, rows, snapshots(tmp_path)))
    with pytest.raises(MacllmError, match="the validation loss after step 4 is not finite"):
        list(trainers[0].run())


def test_an_interrupt_between_micro_batches_leaves_the_last_whole_step(tmp_path: Path) -> None:
    calls = 0

    def interrupted(model: Any, batch: Batch) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return CLM.loss(model, batch)

    config = replace(CONFIG, grad_accumulation_steps=2)
    model = ToyLM()
    with pytest.raises(KeyboardInterrupt):
        list(fit(model, Altered(by=interrupted), config, ROWS, snapshots(tmp_path, config)))
    state = snapshots(tmp_path, config).latest()
    assert state is not None
    assert state.step == 2
    assert all(bool(mx.array_equal(state.weights[k], v)) for k, v in tree_flatten(model.parameters()))
    resumed = ToyLM(seed=5)
    list(fit(resumed, CLM, config, ROWS, snapshots(tmp_path, config)))
    assert digest(resumed) == digest(train(config)[0])


def test_an_interrupt_while_weights_are_evaluated_keeps_the_whole_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def some(weights: dict[str, mx.array], optimizer: OptimizerState) -> None:
        nonlocal calls
        calls += 1
        first = next(iter(weights))
        mx.eval(weights[first], optimizer.slots["square"][first])
        if calls == 6:
            raise KeyboardInterrupt
        mx.eval(weights, *optimizer.slots.values())

    monkeypatch.setattr(loop, "eval_in_chunks", some)
    model = ToyLM()
    with pytest.raises(KeyboardInterrupt):
        list(fit(model, CLM, CONFIG, ROWS, snapshots(tmp_path)))
    state = snapshots(tmp_path).latest()
    assert state is not None
    assert state.step == 6
    assert all(bool(mx.array_equal(state.weights[k], v)) for k, v in tree_flatten(model.parameters()))
    resumed = ToyLM(seed=5)
    list(fit(resumed, CLM, CONFIG, ROWS, snapshots(tmp_path)))
    assert calls == 12
    assert digest(resumed) == digest(train(CONFIG)[0])


def test_the_reported_speed_counts_the_time_of_the_update_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def slowly(weights: dict[str, mx.array], optimizer: OptimizerState) -> None:
        nonlocal now
        now += 2.0
        parameters.eval_in_chunks(weights, optimizer)

    monkeypatch.setattr(loop, "eval_in_chunks", slowly)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    config = replace(CONFIG, iters=4, steps_per_report=2)
    events = list(fit(ToyLM(), CLM, config))
    tokens = {e.done: e.tokens for e in events if isinstance(e, Advanced)}
    speeds = {e.step: e.tokens_per_second for e in events if isinstance(e, Step)}
    assert speeds == {2: (tokens[1] + tokens[2]) / 4, 4: (tokens[3] + tokens[4]) / 4}


def test_a_gradient_that_is_not_finite_ends_the_run_with_the_weights_before_it(tmp_path: Path) -> None:
    def breaks(model: Any, batch: Batch) -> Any:
        loss, weight, metrics = CLM.loss(model, batch)
        return Loss(loss * (math.nan if trainer.state.step == 4 else 1.0), weight, metrics)

    config = replace(CONFIG, rollbacks=0)
    trainer = Trainer.of(ToyLM(), Altered(by=breaks), config, ROWS, snapshots(tmp_path))
    with pytest.raises(MacllmError, match="the gradient of step 5 is not finite"):
        list(trainer.run())
    straight = ToyLM()
    for event in fit(straight, CLM, CONFIG, ROWS):
        if isinstance(event, Step) and event.step == 4:
            break
    assert digest(trainer.model) == digest(straight)
    saved = snapshots(tmp_path).latest()
    assert saved is not None
    assert saved.step == 4
    assert all(bool(mx.array_equal(saved.weights[k], v)) for k, v in tree_flatten(straight.parameters()))


def test_evaluation_runs_before_the_first_step_at_its_interval_and_after_the_last() -> None:
    rows = replace(ROWS, valid=arithmetic_rows(7, seed=9))
    model = ToyLM(dropout=0.5)
    first, _, _ = CLM.loss(ToyLM(), collate(rows.valid))
    events = [e for e in fit(model, CLM, replace(CONFIG, iters=10), rows) if isinstance(e, Evaluated)]
    assert [e.step for e in events] == [0, 4, 8, 10]
    assert events[0].tokens == sum(int(r.loss_mask.sum()) for r in rows.valid)
    assert events[0].loss == pytest.approx(first.item() / events[0].tokens, rel=1e-6)  # dropout is off
    assert [e.best for e in events][1] is True


def test_val_batches_limits_or_disables_evaluation() -> None:
    rows = replace(ROWS, valid=arithmetic_rows(7, seed=9))
    events = [
        e
        for count in (0, 1, -1)
        for e in fit(ToyLM(), CLM, replace(CONFIG, iters=1, val_batches=count), rows)
        if isinstance(e, Evaluated) and e.step == 0
    ]
    assert len(events) == 2
    assert events[0].tokens < events[1].tokens


def objective_with_losses(losses: dict[int, float]) -> tuple[Any, list[Trainer]]:
    """An objective with given validation losses by step, and a list to put its trainer in."""
    trainers: list[Trainer] = []

    def objective(model: Any, batch: Batch) -> Any:
        loss, weight, metrics = CLM.loss(model, batch)
        return Loss(loss if model.training else mx.array(losses[trainers[-1].state.step] * weight), weight, metrics)

    return Altered(by=objective), trainers


def test_every_snapshot_records_the_best_loss_also_after_resuming(tmp_path: Path) -> None:
    config = replace(CONFIG, iters=16, keep=99, save_every=3)
    rows = replace(ROWS, valid=arithmetic_rows(7, seed=9))
    losses = {0: 0.5, 4: 2.0, 8: 3.0, 12: 2.0, 16: 1.0}
    objective, trainers = objective_with_losses(losses)
    events: list[TrainEvent] = []
    for end in (6, 99):
        trainers.append(Trainer.of(ToyLM(), objective, config, rows, snapshots(tmp_path, config)))
        stream = trainers[-1].run()
        for event in stream:
            events.append(event)
            if isinstance(event, Step) and event.step == end:
                break
        stream.close()
    evaluated = [(e.step, e.best) for e in events if isinstance(e, Evaluated)]
    assert evaluated == [(0, True), (4, True), (8, False), (12, False), (16, True)]
    known = {}
    for path in sorted((tmp_path / "snapshots").iterdir()):
        about = json.loads((path / "state.json").read_text())
        known[about["step"]] = (about["eval_loss"], about["best_loss"])
    assert known == {
        3: (None, None), 4: (2.0, 2.0), 6: (None, 2.0), 9: (None, 2.0), 12: (2.0, 2.0), 15: (None, 2.0), 16: (1.0, 1.0),
    }  # fmt: skip
    best = snapshots(tmp_path, config).best()
    assert best is not None
    assert best.step == 16


def test_a_snapshot_is_synced_before_its_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, named, sync, rename = set[int](), list[set[int]](), os.fsync, Path.rename

    def note(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def name(draft: Path, target: Path) -> Path:
        named.append({path.stat().st_ino for path in (draft, *draft.iterdir())} - synced)
        return rename(draft, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", name)
    kept = snapshots(tmp_path)
    kept.save(state_of(1))
    assert named == [set()]
    assert kept.folder.stat().st_ino in synced


def state_of(step: int, loss: float | None = None) -> TrainState:
    weights = {"w": mx.array([float(step), 1.0])}
    zeros = {"w": mx.zeros(2)}
    return TrainState(step, weights, OptimizerState({"mean": zeros, "square": zeros}, step), loss, loss)


def test_the_newest_snapshots_and_the_best_one_are_kept(tmp_path: Path) -> None:
    kept = snapshots(tmp_path)
    for step, loss in enumerate([3.0, 1.0, 2.0, None, 2.5, 1.5], 1):
        kept.save(state_of(step, loss))
    assert sorted(p.name for p in kept.folder.iterdir()) == ["step-00000002", "step-00000005", "step-00000006"]
    best, latest = kept.best(), kept.latest()
    assert best is not None
    assert latest is not None
    assert (best.step, latest.step) == (2, 6)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest", "no manifest"])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.mean.safetensors", "state.json"])
def test_a_damaged_snapshot_is_skipped_for_the_previous_one(tmp_path: Path, name: str, damage: str) -> None:
    kept = snapshots(tmp_path)
    kept.save(state_of(1))
    folder = kept.save(state_of(2))
    path = folder / name
    data = bytearray(path.read_bytes())
    match damage:
        case "truncate":
            path.write_bytes(data[:-1])
        case "flip":
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "remove":
            path.unlink()
        case "manifest":
            (folder / "manifest.json").write_text("[]")
        case _:
            (folder / "manifest.json").unlink()
    latest = kept.latest()
    assert latest is not None
    assert latest.step == 1
    (kept.folder / "step-00000001" / name).unlink()
    with pytest.raises(CheckpointError, match="are damaged"):
        kept.latest()


@pytest.mark.parametrize("text", ["null", "[]", '{"eval_loss": "0.1"}'])
def test_a_state_that_is_other_json_does_not_end_the_run(tmp_path: Path, text: str) -> None:
    kept = snapshots(tmp_path)
    for step in (1, 2):
        (kept.save(state_of(step, 3.0 - step)) / "state.json").write_text(text if step == 1 else "[")
    kept.save(state_of(3, 2.5))
    best, latest = kept.best(), kept.latest()
    assert best is not None
    assert latest is not None
    assert (best.step, latest.step) == (3, 3)


def test_a_snapshot_of_another_layout_is_refused_by_its_format(tmp_path: Path) -> None:
    kept = snapshots(tmp_path)
    folder = kept.save(state_of(1))
    state = json.loads((folder / "state.json").read_text()) | {"format": 1}
    del state["slots"]
    (folder / "state.json").write_text(json.dumps(state))
    for name in ("mean", "square"):
        (folder / f"optimizer.{name}.safetensors").rename(folder / f"{name}.safetensors")
    names = ["weights.safetensors", "mean.safetensors", "square.safetensors", "state.json"]
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in ((name, (folder / name).read_bytes()) for name in names)
    }
    (folder / "manifest.json").write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match="another version of macllm") as error:
        kept.latest()
    assert "format is 1" in str(error.value)


def test_a_folder_without_snapshots_has_no_latest_and_no_best(tmp_path: Path) -> None:
    assert snapshots(tmp_path).latest() is None
    assert snapshots(tmp_path).best() is None


def test_a_run_is_not_resumed_with_other_settings(tmp_path: Path) -> None:
    list(fit(ToyLM(), CLM, CONFIG, ROWS, snapshots(tmp_path)))
    with pytest.raises(UsageError, match=r"learning_rate was 0\.01, is 0\.5"):
        snapshots(tmp_path, replace(CONFIG, learning_rate=0.5)).latest()
    assert snapshots(tmp_path, replace(CONFIG, save_every=1, resume=True)).latest() is not None


def test_a_full_disk_is_an_error_and_keeps_earlier_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = snapshots(tmp_path)
    kept.save(state_of(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DoesNotFitError, match=r"the disk of .* is full"):
        kept.save(state_of(2))
    assert [p.name for p in kept.folder.iterdir()] == ["step-00000001"]


WORKER = """
import sys, time
from pathlib import Path
from dataclasses import replace
from tests.train.test_loop import CONFIG, ROWS, ToyLM, CLM, digest, fit, snapshots
config = replace(CONFIG, iters=40, save_every=1)
model = ToyLM(dropout=0.3)
for event in fit(model, CLM, config, ROWS, snapshots(Path(sys.argv[1]), config)):
    print(type(event).__name__, flush=True)
print(digest(model), flush=True)
"""


def test_a_run_killed_at_any_moment_ends_with_the_same_weights(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    random = np.random.default_rng(0)
    for _ in range(3):
        with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            worker.stdout.readline()  # it has started
            time.sleep(float(random.uniform(0, 0.05)))
            worker.send_signal(signal.SIGKILL)
    ended = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    config = replace(CONFIG, iters=40, save_every=1)
    assert ended.stdout.split()[-1] == digest(train(config, dropout=0.3)[0])
    assert not list((tmp_path / "snapshots").glob(".draft*"))


def test_each_saved_event_names_a_complete_snapshot(tmp_path: Path) -> None:
    for event in fit(ToyLM(), CLM, CONFIG, ROWS, snapshots(tmp_path)):
        if isinstance(event, Saved):
            manifest = json.loads((Path(event.path) / "manifest.json").read_text())
            slots = {"optimizer.mean.safetensors", "optimizer.square.safetensors"}
            assert {"weights.safetensors", "state.json"} | slots == set(manifest)


def test_a_step_replaces_the_weights_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "_CHUNK_BYTES", 1 << 20)
    model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(24)))
    x = mx.ones((1, 256))
    trainer = Trainer.of(model, Altered(by=lambda m, _: Loss(m(x).sum(), 1.0)), CONFIG, ROWS)
    trainer._step()
    weights = sum(array.nbytes for array in trainer.state.weights.values())
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    trainer._step()
    assert 0.9 * weights < mx.get_peak_memory() - before < 1.4 * weights  # the gradients and little more

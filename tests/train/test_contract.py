"""A new objective is one class: rows to examples, a random collation, a loss with metrics."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.errors import DataError
from macllm.ops.cross_entropy import cross_entropy
from macllm.train import data, run
from macllm.train.config import FinetuneConfig
from macllm.train.contract import Arrays, Loss, OptimizerState
from macllm.train.events import Evaluated, Finished, Prepared, Saved, Step, TrainEvent
from macllm.train.loop import Trainer
from macllm.train.passes import Passes
from macllm.train.rows import PlainText, Row
from macllm.train.sources import Rows, Validation
from tests.train.toy import CharTokenizer, ToyLM

VOCAB, MASK = 128, 2


@dataclass(frozen=True)
class Masked:
    """A batch of masked language modelling."""

    inputs: np.ndarray
    targets: np.ndarray
    chosen: np.ndarray

    @property
    def num_target_tokens(self) -> int:
        return int(self.chosen.sum())


@dataclass(frozen=True)
class Words:
    """The tokens of a text."""

    tokens: np.ndarray
    where: str
    splittable: bool = True

    ends = True

    @property
    def sequences(self) -> tuple[np.ndarray, ...]:
        return (self.tokens,)

    @property
    def num_target_tokens(self) -> int:
        return len(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, start: int, stop: int) -> Words:
        return replace(self, tokens=self.tokens[start:stop])

    def fingerprint(self) -> bytes:
        return self.tokens.tobytes()


class MaskedLM:
    """Predict the tokens under a random mask; reports the accuracy."""

    def examples(self, row: Row, tokenizer: Any) -> list[Words]:
        if not isinstance(row, PlainText):
            raise DataError(f"{row.where} is not a text")
        return [Words(np.array(tokenizer.encode(row.text), dtype=np.int32), row.where)]

    def collate(self, examples: Sequence[Words], random: np.random.Generator) -> Masked:
        targets = np.zeros((len(examples), max(map(len, examples))), dtype=np.int32)
        chosen = np.zeros(targets.shape, dtype=bool)
        for i, example in enumerate(examples):
            targets[i, : len(example)] = example.tokens
            chosen[i, : len(example)] = random.random(len(example)) < 0.3
            chosen[i, int(random.integers(len(example)))] = True
        return Masked(np.where(chosen, MASK, targets), targets, chosen)

    def loss(self, model: Any, batch: Masked) -> Loss:
        at = mx.array(np.flatnonzero(batch.chosen))
        hidden = model.hidden(mx.array(batch.inputs)).reshape(batch.inputs.size, -1)[at]
        logits, targets = model.logits(hidden), mx.array(batch.targets.reshape(-1))[at]
        correct = (logits.argmax(axis=-1) == targets).sum().astype(mx.float32)
        return Loss(cross_entropy(logits, targets).sum(), float(at.size), {"accuracy": correct})


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    return small_config(tmp_path)


def small_config(tmp_path: Path) -> FinetuneConfig:
    text = [json.dumps({"text": "abcd"[i % 4] * (3 + i % 5)}) for i in range(24)]
    (tmp_path / "train.jsonl").write_text("\n".join(text))
    (tmp_path / "valid.jsonl").write_text("\n".join(text[:6]))
    return FinetuneConfig(
        data=str(tmp_path), adapter_path=str(tmp_path / "run"), iters=20, batch_size=3, grad_accumulation_steps=2,
        learning_rate=0.03, steps_per_report=5, steps_per_eval=10, save_every=4, keep=9,
    )  # fmt: skip


def masked_events(config: FinetuneConfig, model: nn.Module, objective: Any = None) -> Generator[TrainEvent]:
    """The whole path: files, batches, training, the run's folder, an export."""
    folder, objective = Path(config.adapter_path), objective or MaskedLM()
    run.check(folder, config)
    dataset = data.load(config, objective, CharTokenizer())

    def export() -> Path:
        model.save_weights(str(folder / "weights.safetensors"))
        return folder / "weights.safetensors"

    with run.lock(folder):
        kept = run.snapshots(folder, config, {"rows": dataset.fingerprint()})
        yield from run.record(folder, config, Trainer.of(model, objective, config, dataset, kept).run(export))


def masked(config: FinetuneConfig, model: nn.Module, stop: int | None = None) -> list[TrainEvent]:
    seen = []
    with closing(masked_events(config, model)) as events:
        for event in events:
            seen.append(event)
            if isinstance(event, Step) and event.step == stop:
                break
    return seen


def values(model: nn.Module) -> list[bytes]:
    return [np.array(array).tobytes() for _, array in tree_flatten(model.parameters())]


def lines(config: FinetuneConfig, kind: type) -> list[dict[str, Any]]:
    found = map(json.loads, (Path(config.adapter_path) / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["event"] == kind.__name__ and line.pop("tokens_per_second", 1)]


def test_an_objective_with_random_batches_and_metrics_trains_and_resumes_to_the_same_bytes(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    whole, parts = (ToyLM(VOCAB, dropout=0.1) for _ in range(2))
    events = masked(config, whole)
    kinds = [type(e) for e in events if isinstance(e, Prepared | Step | Evaluated | Finished)]
    assert kinds == [Prepared, Evaluated, Step, Step, Evaluated, Step, Step, Evaluated, Finished]
    assert [e.path for e in events if isinstance(e, Saved)][-1] == str(tmp_path / "run/weights.safetensors")
    reports = [e for e in events if isinstance(e, Step | Evaluated)]
    assert reports[-1].loss < 0.6 * reports[0].loss
    assert all(0 <= report.metrics["accuracy"] <= 1 for report in reports)
    halved = replace(config, adapter_path=str(tmp_path / "halved"))
    masked(halved, parts, stop=5)
    parts = ToyLM(VOCAB, dropout=0.1, seed=9)
    masked(replace(halved, resume=True), parts)
    assert values(parts) == values(whole)
    for kind in (Step, Evaluated):
        assert [{**line, "peak_bytes": 0} for line in lines(halved, kind)] == [
            {**line, "peak_bytes": 0} for line in lines(config, kind)
        ]


def test_metrics_are_means_over_the_units_of_the_loss(config: FinetuneConfig) -> None:
    model, objective = ToyLM(VOCAB), MaskedLM()
    dataset = data.load(config, objective, CharTokenizer())
    untrained = replace(config, learning_rate=1e-12, warmup=0.0, iters=5, steps_per_eval=0)
    step = next(e for e in Trainer.of(model, objective, untrained, dataset).run() if isinstance(e, Step))
    source = Rows(objective, dataset.train, batch_size=3, accumulation=2, seed=0)
    losses = [objective.loss(model, batch) for at in range(5) for batch in source.batches(at, model)]
    units = sum(loss.denominator for loss in losses)
    assert step.metrics["accuracy"] == pytest.approx(sum(loss.metrics["accuracy"].item() for loss in losses) / units)
    assert step.loss == pytest.approx(sum(loss.numerator.item() for loss in losses) / units, rel=1e-5)


def test_batches_are_drawn_from_seed_step_and_micro_batch_alone(config: FinetuneConfig) -> None:
    objective, model = MaskedLM(), ToyLM(VOCAB)
    examples = data.load(replace(config, data=config.data), objective, CharTokenizer()).train

    def drawn(seed: int, step: int) -> list[bytes]:
        source = Rows(objective, examples, batch_size=24, accumulation=2, seed=seed)
        return [np.sort(batch.inputs, axis=None).tobytes() for batch in source.batches(step, model)]

    assert drawn(0, 3) == drawn(0, 3)
    seen = [part for seed in (0, 1) for step in (0, 1) for part in drawn(seed, step)]
    assert len(set(seen)) == len(seen)
    validation = Validation(objective, examples, batch_size=4, most=-1, seed=0)
    assert [b.inputs.tobytes() for b in validation.batches()] == [b.inputs.tobytes() for b in validation.batches()]


@dataclass(frozen=True)
class Momentum:
    """Gradient descent with momentum on matrices only: one slot, for some of the weights."""

    def init(self, weights: Arrays) -> OptimizerState:
        return OptimizerState({"velocity": {k: mx.zeros_like(w) for k, w in weights.items() if w.ndim > 1}}, 0)

    def update(
        self, weights: Arrays, gradients: Arrays, state: OptimizerState, rate: float, scale: mx.array
    ) -> tuple[Arrays, OptimizerState]:
        velocity = {k: 0.9 * v + scale * gradients[k] for k, v in state.slots["velocity"].items()}
        new = {k: w - rate * velocity.get(k, scale * gradients[k]) for k, w in weights.items()}
        return new, OptimizerState({"velocity": velocity}, state.count + 1)


def test_an_optimizer_with_other_slots_trains_and_resumes_to_the_same_bytes(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    objective = MaskedLM()
    dataset = data.load(config, objective, CharTokenizer())
    source = Rows(objective, dataset.train, batch_size=3, accumulation=2, seed=0)
    validation = Validation(objective, dataset.valid, batch_size=3, most=-1, seed=0)
    models = []
    for name, stops in (("whole", [None]), ("parts", [5, None])):
        for stop in stops:
            models.append(ToyLM(VOCAB, seed=0 if stop or name == "whole" else 3))
            kept = run.snapshots(tmp_path / name, config, {})
            events = Trainer(Passes(models[-1], objective, source, validation), Momentum(), config, kept).run()
            with closing(events):
                for event in events:
                    if isinstance(event, Step) and event.step == stop:
                        break
    assert values(models[0]) == values(models[-1]) != values(models[1])
    assert {path.name for path in (tmp_path / "parts/snapshots").glob("*/optimizer.*")} == {
        "optimizer.velocity.safetensors"
    }

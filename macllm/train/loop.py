"""The training loop: one generator for every objective, optimizer and model."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from macllm.errors import MacllmError

from .config import TrainConfig
from .data import Batch, Batches, Dataset, collate, in_order
from .events import Advanced, Evaluated, Saved, Step, TrainEvent
from .optim import AdamState, AdamW, Arrays, clip_factor, global_norm, learning_rate
from .snapshot import Snapshots, TrainState

_EVAL_CHUNK_BYTES = 1 << 26  # new weights and moments in one mx.eval

Objective = Callable[[Any, Batch], tuple[mx.array, float, dict[str, float]]]


def fit(
    model: nn.Module,
    objective: Objective,
    config: TrainConfig,
    rows: Dataset,
    snapshots: Snapshots | None = None,
) -> Generator[TrainEvent]:
    """Train the trainable parameters of `model` in place and yield the events.

    Resumes from the newest of `snapshots`. Evaluates before the first step, every
    `steps_per_eval` and after the last. However training ends (closed, interrupted, failed), the model has the
    weights of the last complete step and a snapshot of them is on disk. The model is left in training mode.
    """
    return Trainer(model, objective, config, rows, snapshots).run()


def total_steps(config: TrainConfig, batches_per_epoch: int) -> int:
    """Number of optimizer steps in a run."""
    if config.iters:
        return config.iters
    return max(1, round(config.epochs * batches_per_epoch / config.grad_accumulation_steps))


@dataclass
class _Window:
    """Sums since the last report."""

    numerator: float = 0.0
    denominator: float = 0.0
    norm: float = 0.0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


def _number(array: mx.array) -> float:
    return cast("float", array.item())


def _eval_in_chunks(weights: Arrays, optimizer: AdamState) -> None:
    """Evaluate a few weights at a time: the memory of old weights and gradients is freed in between."""
    waiting: list[mx.array] = []
    for name, weight in weights.items():
        waiting += [weight, optimizer.mean[name], optimizer.square[name]]
        if sum(array.nbytes for array in waiting) >= _EVAL_CHUNK_BYTES:
            mx.eval(waiting)
            waiting = []
    mx.eval(waiting)


class Trainer:
    """Training of one model; `state` is replaced as a whole after each step."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        config: TrainConfig,
        rows: Dataset,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.config = config
        self.rows = rows
        self.snapshots = snapshots
        self.batches = Batches(rows.train, config.batch_size, config.seed)
        self.steps = total_steps(config, self.batches.per_epoch)
        self.optimizer = AdamW.of(config)
        self.gradient = nn.value_and_grad(model, lambda batch: objective(model, batch))
        self.state = self._begin()
        self.window = _Window()
        self.last_loss = float("nan")  # of the last report
        self.saved_step = self.state.step if snapshots and self.state.step else -1

    def _begin(self) -> TrainState:
        state = self.snapshots.latest() if self.snapshots else None
        # Master weights in float32: in 16 bits a small update would round to nothing.
        loaded = dict(tree_flatten(self.model.trainable_parameters()))
        weights = {name: weight.astype(mx.float32) for name, weight in loaded.items()}
        if state is None:
            mx.eval(weights)
            self.put(weights)
            return TrainState(0, weights, self.optimizer.init(weights))
        assert state.weights.keys() == weights.keys(), "a snapshot of the same run has the same weights"
        self.put(state.weights)
        return state

    def put(self, weights: Arrays) -> None:
        """Set the model's trainable parameters."""
        self.model.update(tree_unflatten(list(weights.items())))

    def run(self) -> Generator[TrainEvent]:
        """The events of the whole run; see `fit`."""
        mx.reset_peak_memory()
        self.model.train()
        try:
            if self.state.step == 0:
                yield from self._evaluate()
            while self.state.step < self.steps:
                self._step()
                yield Advanced("training", self.state.step, self.steps)
                yield from self._report()
                yield from self._after_step()
            yield from self._save()
        finally:
            self.put(self.state.weights)
            for _ in self._save():
                pass

    def _step(self) -> None:
        """One optimizer step: gradients summed over micro-batches, divided once by the supervised tokens."""
        window = self.window
        began, state, config = time.perf_counter(), self.state, self.config
        mx.random.seed((config.seed << 32) + state.step)
        gradients, numerator, denominator = self._gradients()
        norm = global_norm(gradients) / denominator
        rate = learning_rate(config, state.step, self.steps)
        size = _number(norm)
        if not size < float("inf"):
            raise MacllmError(
                f"the gradient of step {state.step + 1} is not finite",
                cause=f"loss {numerator / denominator:.4g}, learning rate {rate:.3g}",
                remedy="a lower --learning-rate; --resume continues from the last complete step",
            )
        scale = clip_factor(norm, config.max_grad_norm) / denominator
        weights, optimizer = self.optimizer.update(state.weights, gradients, state.optimizer, rate, scale)
        # The new weights replace the old ones before they are evaluated, so that only the lazy graph holds old weights
        # and gradients. After an interruption the next reader evaluates the rest.
        self.state = replace(state, step=state.step + 1, weights=weights, optimizer=optimizer, eval_loss=None)
        self.put(weights)
        del state, gradients
        _eval_in_chunks(weights, optimizer)
        window.numerator += numerator
        window.denominator += denominator
        window.norm += size
        window.steps += 1
        window.seconds += time.perf_counter() - began

    def _gradients(self) -> tuple[Arrays, float, float]:
        """Gradients of the summed loss over the step's micro-batches, that sum, and the sum of its weights."""
        steps = self.config.grad_accumulation_steps
        summed: Arrays = {}
        numerator = denominator = 0.0
        for micro in range(self.state.step * steps, (self.state.step + 1) * steps):
            batch = self.batches.batch(micro)
            (loss, weight, _), tree = self.gradient(batch)
            gradients = dict(tree_flatten(tree))
            summed = {k: summed[k] + g for k, g in gradients.items()} if summed else gradients
            mx.eval(loss, summed)
            numerator += _number(loss)
            denominator += weight
            self.window.tokens += batch.num_target_tokens
        return summed, numerator, denominator

    def _report(self) -> Iterator[TrainEvent]:
        step, window = self.state.step, self.window
        if step % self.config.steps_per_report and step != self.steps:
            return
        event = Step(
            step=step,
            loss=window.numerator / window.denominator,
            learning_rate=learning_rate(self.config, step - 1, self.steps),
            grad_norm=window.norm / window.steps,
            tokens_per_second=window.tokens / max(window.seconds, 1e-9),
            peak_bytes=mx.get_peak_memory(),
        )
        self.window, self.last_loss = _Window(), event.loss
        yield event

    def _after_step(self) -> Iterator[TrainEvent]:
        step, config = self.state.step, self.config
        improved = False
        if step == self.steps or (config.steps_per_eval and step % config.steps_per_eval == 0):
            for event in self._evaluate():
                improved = isinstance(event, Evaluated) and event.best
                yield event
        if improved or (config.save_every and step % config.save_every == 0):
            yield from self._save()

    def _evaluate(self) -> Iterator[Advanced | Evaluated]:
        """Compute the validation loss, without dropout."""
        batches = in_order(self.rows.valid, self.config.batch_size)
        if self.config.val_batches >= 0:
            batches = batches[: self.config.val_batches]
        if not batches:
            return
        numerator = denominator = 0.0
        self.model.eval()
        try:
            for number, examples in enumerate(batches):
                yield Advanced("evaluating", number, len(batches))
                loss, weight, _ = self.objective(self.model, collate(examples))
                numerator += _number(loss)
                denominator += weight
        finally:
            self.model.train()
        loss, before = numerator / denominator, self.state.best_loss
        best = before is None or loss < before
        if self.state.step:  # the untrained model does not count as the best
            self.state = replace(self.state, eval_loss=loss, best_loss=loss if best else before)
        yield Evaluated(self.state.step, loss, round(denominator), best)

    def _save(self) -> Iterator[TrainEvent]:
        if self.snapshots is None or self.saved_step == self.state.step or self.state.step == 0:
            return
        path = self.snapshots.save(self.state)
        self.saved_step = self.state.step
        yield Saved(self.state.step, str(path))

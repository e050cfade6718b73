"""The training loop: one generator for every objective, optimizer and model."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from macllm.errors import MacllmError

from .config import TrainConfig
from .contract import Arrays, B, E, Loss, Objective, Optimizer, OptimizerState, Source
from .data import Dataset
from .events import Advanced, Evaluated, Finished, Prepared, Saved, Step, TrainEvent
from .optim import AdamW, clip_factor, global_norm, learning_rate
from .snapshot import Snapshots, TrainState
from .sources import Rows, Validation

_EVAL_CHUNK_BYTES = 1 << 26  # new weights and optimizer state in one mx.eval


def total_steps(config: TrainConfig, steps_per_epoch: float) -> int:
    """Number of optimizer steps in a run."""
    if config.iters:
        return config.iters
    return max(1, round(config.epochs * steps_per_epoch))


@dataclass
class _Window:
    """Sums since the last report."""

    numerator: float = 0.0
    denominator: float = 0.0
    norm: float = 0.0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict[str, float])


def _number(array: mx.array | float) -> float:
    return cast("float", array.item()) if isinstance(array, mx.array) else array


def _add(sums: dict[str, float], metrics: Any) -> None:
    for name, value in metrics.items():
        sums[name] = sums.get(name, 0.0) + _number(value)


def _size(parameters: Any) -> int:
    return sum(array.size for _, array in tree_flatten(parameters) if isinstance(array, mx.array))


def _eval_in_chunks(weights: Arrays, optimizer: OptimizerState) -> None:
    """Evaluate a few weights at a time: the memory of old weights and gradients is freed in between."""
    waiting: list[mx.array] = []
    for name, weight in weights.items():
        waiting += [weight, *(slot[name] for slot in optimizer.slots.values() if name in slot)]
        if sum(array.nbytes for array in waiting) >= _EVAL_CHUNK_BYTES:
            mx.eval(waiting)
            waiting = []
    mx.eval(waiting, *optimizer.slots.values())


class Trainer(Generic[B]):
    """Training of the trainable parameters of one model, in place.

    `state` is replaced as a whole after each step. The run resumes from the newest of `snapshots`.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective[Any, Any, B],
        source: Source[B],
        validation: Validation[Any, B],
        optimizer: Optimizer,
        config: TrainConfig,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.source = source
        self.validation = validation
        self.optimizer = optimizer
        self.config = config
        self.snapshots = snapshots
        self.steps = total_steps(config, source.steps_per_epoch)
        self.gradient = nn.value_and_grad(model, lambda batch: objective.loss(model, batch))
        self.state = self._begin()
        self.window = _Window()
        self.last_loss = float("nan")  # of the last report
        self.saved_step = self.state.step if snapshots and self.state.step else -1

    @classmethod
    def of(
        cls,
        model: nn.Module,
        objective: Objective[Any, E, B],
        config: TrainConfig,
        dataset: Dataset[E],
        snapshots: Snapshots | None = None,
    ) -> Trainer[B]:
        """A trainer on the rows of `dataset`, with the optimizer that `config` describes."""
        size, seed = config.batch_size, config.seed
        source = Rows(
            objective,
            dataset.train,
            batch_size=size,
            accumulation=config.grad_accumulation_steps,
            seed=seed,
            counts=dataset.counts,
        )
        validation = Validation(objective, dataset.valid, batch_size=size, most=config.val_batches, seed=seed)
        return cls(model, objective, source, validation, AdamW.of(config), config, snapshots)

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

    def run(self, export: Callable[[], Path] | None = None) -> Generator[TrainEvent]:
        """Train and yield all events of the run.

        Evaluates before the first step, every `steps_per_eval` and after the last. However training ends (closed,
        interrupted, failed), the model has the weights of the last complete step and a snapshot of them is on disk.
        Then, if a step was done, the model gets the weights that the config selects, and `export` writes it and returns
        the path. The model is left in training mode without `export`, else in evaluation mode.
        """
        began, loss, path = time.perf_counter(), self.last_loss, None
        mx.reset_peak_memory()
        self.model.train()
        try:
            yield self._prepared()
            yield from self._train()
        finally:
            self.put(self.state.weights)
            try:
                for _ in self._save():
                    pass
            finally:
                if export is not None and self.state.step:
                    loss = self._select()
                    self.model.eval()
                    path = export()
        if path is not None:
            yield Saved(self.state.step, str(path))
        yield Finished(self.state.step, loss, time.perf_counter() - began, self.config.folder)

    def _prepared(self) -> Prepared:
        return Prepared(
            **asdict(self.source.counts),
            valid_rows=self.validation.num_examples,
            parameters=_size(self.model.parameters()),
            trained_parameters=_size(self.model.trainable_parameters()),
            steps=self.steps,
            first_step=self.state.step,
        )

    def _select(self) -> float:
        """Put the weights to export into the model, and return their loss.

        The best weights if the config selects them and the run has validation data, else the last ones.
        """
        if self.snapshots and self.config.select == "best" and self.validation.num_examples:
            best = self.snapshots.best()
            if best is not None and best.eval_loss is not None:
                self.put(best.weights)
                return best.eval_loss
        return self.last_loss if self.state.eval_loss is None else self.state.eval_loss

    def _train(self) -> Iterator[TrainEvent]:
        if self.state.step == 0:
            yield from self._evaluate()
        while self.state.step < self.steps:
            self._step()
            yield Advanced("training", self.state.step, self.steps)
            yield from self._report()
            yield from self._after_step()
        yield from self._save()

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
        """Gradients of the summed loss over the step's micro-batches, that sum, and the sum of its units."""
        summed: Arrays = {}
        numerator = denominator = 0.0
        for batch in self.source.batches(self.state.step, self.model):
            result, tree = self.gradient(batch)
            loss = Loss(*result)
            gradients = dict(tree_flatten(tree))
            summed = {k: summed[k] + g for k, g in gradients.items()} if summed else gradients
            mx.eval(loss.numerator, loss.metrics, summed)
            numerator += _number(loss.numerator)
            denominator += loss.denominator
            _add(self.window.metrics, loss.metrics)
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
            metrics={name: value / window.denominator for name, value in window.metrics.items()},
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
        if not self.validation:
            return
        numerator = denominator = 0.0
        tokens, metrics = 0, dict[str, float]()
        self.model.eval()
        try:
            for number, batch in enumerate(self.validation.batches()):
                yield Advanced("evaluating", number, len(self.validation))
                loss = self.objective.loss(self.model, batch)
                numerator += _number(loss.numerator)
                denominator += loss.denominator
                tokens += batch.num_target_tokens
                _add(metrics, loss.metrics)
        finally:
            self.model.train()
        loss, before = numerator / denominator, self.state.best_loss
        best = before is None or loss < before
        if self.state.step:  # the untrained model does not count as the best
            self.state = replace(self.state, eval_loss=loss, best_loss=loss if best else before)
        means = {name: value / denominator for name, value in metrics.items()}
        yield Evaluated(self.state.step, loss, tokens, best, means)

    def _save(self) -> Iterator[TrainEvent]:
        if self.snapshots is None or self.saved_step == self.state.step or self.state.step == 0:
            return
        path = self.snapshots.save(self.state)
        self.saved_step = self.state.step
        yield Saved(self.state.step, str(path))

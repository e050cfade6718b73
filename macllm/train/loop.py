"""The training loop: one generator for every objective, optimizer and model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Generic, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from macllm.errors import MacllmError, UsageError

from .buffers import Buffers
from .config import TrainConfig
from .contract import Arrays, B, E, Objective, Optimizer
from .data import Dataset
from .events import Advanced, Continued, Evaluated, Finished, Paused, Prepared, Saved, Skipped, Step, TrainEvent
from .generating import kept_by, restore
from .group import Group, agree, leave
from .optim import clip_factor, configured, global_norm, learning_rate, share
from .parameters import are_finite, check_shapes, compute_layers_again, eval_in_chunks, shapes, size_of
from .passes import Passes
from .power import BatteryPause
from .snapshot import Snapshots, Sums, TrainState
from .spikes import SpikeRules

_LOWER_RATE = "a new run with a lower --learning-rate, or macllm runs fork with --set learning_rate=X"
_STRIDE = 0x9E3779B97F4A7C15  # between the seeds of two processes, which drop different inputs


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Number of optimizer steps in a run; a fraction of an epoch is rounded up to whole steps."""
    return config.iters or max(1, share(config.epochs, steps_per_epoch))


def _mark(state: TrainState) -> tuple[object, ...]:
    """A value that tells a state from the others of a run, and holds none of its arrays."""
    return state.step, state.best_loss, state.eval_loss, state.window, state.watch


class Trainer(Generic[B]):
    """Training of the trainable parameters of one model, in place.

    `state` is replaced as a whole after each step. The run resumes from the newest of `snapshots`.
    """

    def __init__(
        self, passes: Passes[B], optimizer: Optimizer, config: TrainConfig, snapshots: Snapshots | None = None
    ) -> None:
        self.passes = passes
        self.model = passes.model
        self.optimizer = optimizer
        self.config = config
        self.snapshots = snapshots
        self.steps = total_steps(config, passes.source.steps_per_epoch)
        self._recomputes = compute_layers_again(passes.model, bool(config.grad_checkpoint))
        self.state = self._begin()
        self._saved = _mark(self.state)  # nothing to save before the first step
        self._last_loss = float("nan")  # of the last report
        self._rules = SpikeRules.of(config, self.steps)
        self.battery = BatteryPause(config.pause_on_battery)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        objective: Objective[Any, E, B],
        config: TrainConfig,
        dataset: Dataset[E],
        snapshots: Snapshots | None = None,
        group: Group | None = None,
    ) -> Trainer[B]:
        """A trainer on the rows of `dataset`, with the optimizer that `config` describes.

        In a `group` of processes, each calls this with the same arguments and weights, and all do the steps together.
        Process 0 writes the snapshots, in a folder that all can read.
        """
        rows = snapshots.step_rows(config) if snapshots else (config.batch_size, config.grad_accumulation_steps)
        passes = Passes.of(model, objective, config, dataset, rows, group)
        return cls(passes, configured(config, model), config, snapshots)

    def _begin(self) -> TrainState:
        state = self.snapshots.latest() if self.snapshots else None
        # Master weights in float32: in 16 bits a small update would round to nothing.
        loaded = dict(tree_flatten(self.model.trainable_parameters()))
        weights = {name: weight.astype(mx.float32) for name, weight in loaded.items()}
        if state is None:
            mx.eval(weights)
            self.put(weights)
            return TrainState(0, weights, self.optimizer.init(weights))
        restore(self.passes.source, state.kept)
        check_shapes(state.step, state.weights, weights)
        if state.is_forked and state.step >= self.steps:
            cause = f"with these rows, epochs and batches the run has {self.steps} steps"
            remedy = "--resume in its folder with a higher --epochs or --iters"
            raise UsageError(f"no step is left after step {state.step}", cause=cause, remedy=remedy)
        self.put(state.weights)
        if state.is_forked and shapes(state.optimizer) != shapes(first := self.optimizer.init(weights)):
            state = replace(state, optimizer=first)
        return state

    def put(self, weights: Arrays) -> None:
        """Set the model's trainable parameters."""
        self.model.update(tree_unflatten(list(weights.items())))

    def run(self, export: Callable[[], Path] | None = None) -> Generator[TrainEvent]:
        """Train and yield all events of the run.

        Evaluates before the first step, every `steps_per_eval` and after the last. However training ends (closed,
        interrupted, failed), the model has the weights of the last complete step and a snapshot of them is on disk.
        Of a group, the other processes end at their next sum, with a PeerError.
        Then, if a step was done, the model gets the weights that the config selects, and `export` writes it and returns
        the path. The model is left in training mode without `export`, else in evaluation mode.
        """
        began, path = time.perf_counter(), None
        buffers = Buffers()
        self.model.train()
        try:
            yield self._prepared()
            yield from self._train(buffers)
            agree(self.passes.group)
        except BaseException as error:
            leave(error, self.passes.group)
            raise
        finally:
            self.put(self.state.weights)
            try:
                for _ in self._save():
                    pass
            finally:
                buffers.release()
                if export is not None and self._select():
                    self.model.eval()
                    path = export()
        if path is not None:
            yield Saved(self.state.step, str(path))
        yield Finished(self.state.step, self._last_loss, time.perf_counter() - began, self.config.result)

    def _prepared(self) -> Prepared:
        return Prepared(
            **asdict(self.passes.source.counts),
            valid_rows=self.passes.validation.num_examples,
            sampled_rows=self.passes.validation.num_sampled,
            valid=self.passes.validation.counts,
            parameters=size_of(self.model.parameters()),
            trained_parameters=size_of(self.model.trainable_parameters()),
            steps=self.steps,
            first_step=self.state.step,
            steps_per_eval=self.config.steps_per_eval,
            recomputes=self._recomputes,
        )

    def _select(self) -> bool:
        """Put the weights to export into the model; False without any.

        The best weights if the config selects them and the run has evaluated some, else the last ones that are finite.
        """
        state = self.state
        if self.snapshots and self.config.select == "best" and self.passes.validation:
            state = self.snapshots.best() or state
        if not are_finite(state.weights):
            state = (self.snapshots and self.snapshots.latest()) or replace(state, step=0)
        if state.watch.spares_all(state.step):
            return False
        self.put(state.weights)
        if state.eval_loss is not None:
            self._last_loss = state.eval_loss
        return True

    def _train(self, buffers: Buffers) -> Iterator[TrainEvent]:
        if self.state.step == 0:
            yield from self._evaluate()
        else:
            yield from self._after_step()  # what an interruption left undone
        while self.state.step < self.steps:
            done = self._step()
            buffers.fit()
            yield done
            yield from self._after_step()
            yield from self._pause()
        if self.steps and self.state.watch.spares_all(self.steps):
            cause = f"the gradient of every step up to {self.steps} was not finite"
            raise MacllmError("nothing was trained", cause=cause, remedy="another model, or a lower learning rate")
        yield from self._save()

    def _step(self) -> Advanced | Skipped:
        """One optimizer step: gradients summed over micro-batches, divided once by the units of the loss."""
        began, state, config = time.perf_counter(), self.state, self.config
        mx.random.seed(((config.seed << 32) + state.step + self.passes.group.rank * _STRIDE) % 2**64)
        gradients, sums = self.passes.gradients(state.step, state.weights)
        if not sums.denominator:
            raise MacllmError(
                f"the rows of step {state.step + 1} have nothing to learn from",
                cause="the objective counts no unit of loss in them",
                remedy="rows with supervised tokens",
            )
        norm = global_norm(gradients) / sums.denominator
        rate = learning_rate(config, state.step, self.steps)
        size = cast("float", norm.item())
        if not size < float("inf"):
            cause = f"loss {sums.numerator / sums.denominator:.4g}, learning rate {rate:.3g}"
            error = MacllmError(f"the gradient of step {state.step + 1} is not finite", cause=cause, remedy=_LOWER_RATE)
            return self._skip(state.step + 1, error)
        scale = clip_factor(norm, config.max_grad_norm) / sums.denominator
        weights, optimizer = self.optimizer.update(state.weights, gradients, state.optimizer, rate, scale)
        # The new weights replace the old ones before they are evaluated, so that only the lazy graph holds old weights
        # and gradients. After an interruption the next reader evaluates the rest.
        sums = replace(sums, norm=size, steps=1, seconds=time.perf_counter() - began)
        window = state.window.plus(sums)
        step, best = state.step + 1, state.best_loss
        watch = state.watch.seen(step, sums.numerator / sums.denominator, size, self._rules)
        kept = kept_by(self.passes.source, step)
        self.state = TrainState(step, weights, optimizer, best, window=window, watch=watch, kept=kept)
        self.put(weights)
        del state, gradients
        eval_in_chunks(weights, optimizer)
        seconds = time.perf_counter() - began
        self.state = replace(self.state, window=self.state.window.plus(Sums(seconds=seconds - sums.seconds)))
        return self._advanced(sums, rate, seconds)

    def _skip(self, step: int, error: MacllmError) -> Skipped:
        """Go on after `step` with the weights of the last good snapshot, or as they are without one.

        Raises `error` once the number of times is used up.
        """
        state, watch = self.state, self.state.watch
        if watch.rollbacks >= self._rules.rollbacks:
            raise error
        good = self.snapshots.at(watch.good) if self.snapshots and watch.good else state
        watch = watch.skipping(step)
        best, window = state.best_loss, state.window
        kept = kept_by(self.passes.source, step)
        self.state = TrainState(step, good.weights, good.optimizer, best, window=window, watch=watch, kept=kept)
        self.put(good.weights)
        return Skipped(step, watch.skipped[-1][0], error.message)

    def _pause(self) -> Iterator[TrainEvent]:
        """Save and wait while the machine runs on its battery; no number of the run depends on it."""
        if self.battery.is_due():
            yield from self._save()
            yield Paused(self.state.step, "on battery power")
            yield Continued(self.state.step, self.battery.wait())

    def _advanced(self, sums: Sums, rate: float, seconds: float) -> Advanced:
        """The progress after a step with these sums."""
        return Advanced(
            "training",
            self.state.step,
            self.steps,
            loss=sums.numerator / sums.denominator,
            learning_rate=rate,
            tokens=sums.tokens,
            seconds=seconds,
            active_bytes=mx.get_active_memory(),
            peak_bytes=mx.get_peak_memory(),
        )

    def _after_step(self) -> Iterator[TrainEvent]:
        """Do what is due after the last step and not done yet: go back, report, evaluate, save."""
        if self.state.watch.is_spike(self._rules):
            cause = f"the loss or the gradient rose {self._rules.patience} times in a row"
            yield self._skip(self.state.step, MacllmError(f"{cause} up to step {self.state.step}"))
        step, config = self.state.step, self.config
        if self.state.window.steps and (step == self.steps or step % config.steps_per_report == 0):
            yield self._report()
        improved = False
        if self.state.eval_loss is None and (
            step == self.steps or (config.steps_per_eval and step % config.steps_per_eval == 0)
        ):
            for event in self._evaluate():
                improved = isinstance(event, Evaluated) and event.best
                yield event
        is_due = bool(config.save_every) and step % config.save_every == 0
        if is_due and (watch := self.state.watch.saved(step)) != self.state.watch:
            self.state = replace(self.state, watch=watch)
        if improved or is_due:
            yield from self._save()

    def _report(self) -> Step:
        step, window = self.state.step, self.state.window
        self.state = replace(self.state, window=Sums())
        self._last_loss = window.numerator / window.denominator
        return Step(
            step=step,
            loss=self._last_loss,
            learning_rate=learning_rate(self.config, step - 1, self.steps),
            grad_norm=window.norm / window.steps,
            tokens_per_second=window.tokens / max(window.seconds, 1e-9),
            peak_bytes=mx.get_peak_memory(),
            metrics=self.passes.metrics(window),
        )

    def _evaluate(self) -> Iterator[Advanced | Evaluated]:
        """Compute the validation loss."""
        if not self.passes.validation:
            return
        sums = yield from self.passes.evaluation()
        if not sums.denominator:
            raise MacllmError("the validation rows have nothing to evaluate", remedy="rows with supervised tokens")
        loss, before = sums.numerator / sums.denominator, self.state.best_loss
        if not math.isfinite(loss):
            raise MacllmError(
                f"the validation loss after step {self.state.step} is not finite",
                remedy=_LOWER_RATE if self.state.step else "another model or other validation data",
            )
        best = before is None or loss < before
        if self.state.step:  # the untrained model does not count as the best
            self.state = replace(self.state, eval_loss=loss, best_loss=loss if best else before)
        yield Evaluated(self.state.step, loss, sums.tokens, best, self.passes.metrics(sums))

    def _save(self) -> Iterator[TrainEvent]:
        if self.snapshots is None or self._saved == _mark(self.state) or self.passes.group.rank:
            return
        if not are_finite(self.state.weights):
            raise MacllmError(f"the weights after step {self.state.step} are not finite", remedy=_LOWER_RATE)
        yield Advanced("saving", 0, 1)
        path = self.snapshots.save(self.state)
        self._saved = _mark(self.state)
        yield Saved(self.state.step, str(path))

"""Bugs in the loss of a step, the optimizer and the schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macllm.train import loop, optim, passes
from macllm.train.contract import Loss, OptimizerState
from tests.train import test_loop, test_optim

from .mutant import Mutant, Patch, claim


def _adamw(decay_all: bool) -> Callable[[Path], object]:
    return lambda _: test_optim.test_adamw_equals_its_definition_in_float64(_gradients(), decay_all)


def _gradients() -> Any:
    random = np.random.default_rng(0)
    return test_optim.arrays(random), [test_optim.arrays(random) for _ in range(20)]


def average_means(patch: Patch) -> None:
    """Micro-batches count alike, however many tokens they have."""
    loss = passes.Passes.loss

    def mean(of: Any, batch: Any) -> Loss:
        numerator, denominator, metrics = loss(of, batch)
        return Loss(numerator / denominator, 1.0, metrics)

    patch.setattr(passes.Passes, "loss", mean)


def clip_sums(patch: Patch) -> None:
    """The summed gradient is clipped, before it is averaged."""
    norms: list[mx.array] = []
    norm = loop.global_norm
    patch.setattr(loop, "global_norm", lambda gradients: norms.append(norm(gradients)) or norms[-1])
    clip_factor = loop.clip_factor
    patch.setattr(loop, "clip_factor", lambda _, most: clip_factor(norms[-1], most))


def updates(change: Callable[..., tuple[Any, Any, Any]]) -> Callable[[Patch], object]:
    """Change optimizer, gradients and state before each update: (adam, weights, gradients, state, scale)."""

    def put(patch: Patch) -> None:
        update = optim.AdamW.update

        def changed(adam: Any, weights: Any, gradients: Any, state: Any, rate: float, scale: mx.array) -> Any:
            adam, gradients, state = change(adam, weights, gradients, state, scale)
            return update(adam, weights, gradients, state, rate, scale)

        patch.setattr(optim.AdamW, "update", changed)

    return put


def leave_moments_biased(adam: Any, weights: Any, gradients: Any, state: OptimizerState, scale: mx.array) -> Any:
    """The first steps are 3.16 times as long as the learning rate."""
    return adam, gradients, replace(state, count=10**6)


def couple_decay(adam: Any, weights: Any, gradients: Any, state: OptimizerState, scale: mx.array) -> Any:
    """Weight decay goes through the moments."""
    decayed = {k: g + adam.weight_decay * weights[k] / scale for k, g in gradients.items()}
    return replace(adam, weight_decay=0.0), decayed, state


def decay_everything(adam: Any, weights: Any, gradients: Any, state: OptimizerState, scale: mx.array) -> Any:
    """Norms, biases and embeddings decay too."""
    return replace(adam, decay_all=True), gradients, state


def skip_last_step(patch: Patch) -> None:
    """Training ends one step early."""
    steps = loop.total_steps
    patch.setattr(loop, "total_steps", lambda *arguments: steps(*arguments) - 1)


def schedule_a_step_late(patch: Patch) -> None:
    """The rate of each step is that of the one before."""
    rate = optim.learning_rate
    patch.setattr(optim, "learning_rate", lambda config, step, steps: rate(config, max(0, step - 1), steps))


ACCUMULATION = claim(test_loop.test_micro_batches_give_the_weights_of_whole_batches)
RUN = claim(test_loop.test_a_run_equals_its_definition_in_float64)
FIRST_STEP = claim(lambda: test_optim.test_the_first_step_is_as_long_as_the_learning_rate(_gradients()))
SCHEDULE = claim(test_optim.test_a_schedule_rises_to_its_peak_and_falls_no_lower_than_its_floor, "cosine", 7)

MUTANTS = [
    Mutant("mean of means", average_means, ACCUMULATION),
    Mutant("clipped before averaging", clip_sums, RUN),
    Mutant("no bias correction", updates(leave_moments_biased), FIRST_STEP),
    Mutant("coupled decay", updates(couple_decay), _adamw(True)),
    Mutant("norms and embeddings decay", updates(decay_everything), _adamw(False)),
    Mutant("last step is skipped", skip_last_step, RUN),
    Mutant("schedule is a step late", schedule_a_step_late, SCHEDULE),
]

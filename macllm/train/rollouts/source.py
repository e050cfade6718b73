"""The source of batches that are generated with the current weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, cast

import mlx.nn as nn
import numpy as np

from macllm.errors import MacllmError
from macllm.nn.protocol import LanguageModel
from macllm.train.contract import Arrays, B_co, Source
from macllm.train.events import Counts

from .experience import AnswerGroup, Columns, Experience, Rollout


class Learner(Protocol[B_co]):
    """An objective that learns from groups of answers."""

    def answered(self, model: LanguageModel, batches: Sequence[Any], number: int) -> list[AnswerGroup]:
        """Rewarded answers to the prompts of rollout `number`."""
        ...

    def credited(self, groups: Sequence[AnswerGroup]) -> list[list[Columns]]:
        """The columns of each completion of each group, advantages among them."""
        ...

    def batch(self, experiences: Sequence[Experience], whole: Sequence[Experience], rollout: Rollout) -> B_co:
        """The batch of some of the experiences of a step, whose experiences are `whole`."""
        ...


@dataclass(frozen=True)
class Plan:
    """The use of a rollout: `iterations` passes of `minibatches` steps, `micro_batch` answers at once."""

    iterations: int
    minibatches: int
    micro_batch: int
    seed: int

    @property
    def steps(self) -> int:
        """Optimizer steps on one rollout."""
        return self.iterations * self.minibatches


class Rollouts(Generic[B_co]):
    """Batches of answers to the prompts of another source.

    Step n trains on rollout n // `plan.steps`, which is a function of (seed, its number, the weights at its first
    step), whatever the size of micro-batches.
    """

    def __init__(self, prompts: Source[Any], learner: Learner[B_co], plan: Plan) -> None:
        self._prompts, self._learner, self._plan = prompts, learner, plan
        self._rollout: Rollout | None = None

    @property
    def counts(self) -> Counts:
        """Statistics of the rows with the prompts."""
        return self._prompts.counts

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in a pass over the prompts."""
        return self._prompts.steps_per_epoch * self._plan.steps

    def batches(self, step: int, model: nn.Module) -> Iterator[B_co]:
        """The micro-batches of step `step`, from 0. The first step of a rollout generates it."""
        number, within = divmod(step, self._plan.steps)
        if self._rollout is None or self._rollout.number != number:
            self._rollout = None
            self._rollout = self._generated(number, model)
        rollout = self._rollout
        chosen = [rollout.experiences[i] for i in self._part(rollout, *divmod(within, self._plan.minibatches))]
        for start in range(0, len(chosen), self._plan.micro_batch):
            yield self._learner.batch(chosen[start : start + self._plan.micro_batch], chosen, rollout)

    def kept(self, step: int) -> Arrays:
        """The rollout, if step `step` is not the first one on it."""
        number, within = divmod(step, self._plan.steps)
        rollout = self._rollout
        return rollout.arrays() if within and rollout is not None and rollout.number == number else {}

    def restore(self, kept: Arrays) -> None:
        """Go on with the rollout that `kept` has."""
        self._rollout = Rollout.from_arrays(kept) if kept else None

    def _part(self, rollout: Rollout, iteration: int, minibatch: int) -> Sequence[int]:
        """The experiences of a step: all, or a minibatch of them in the random order of this pass."""
        count, parts = len(rollout.experiences), self._plan.minibatches
        if parts == 1:
            return range(count)
        order = np.random.default_rng([self._plan.seed, rollout.number, iteration]).permutation(count)
        divided = np.array_split(order, min(parts, count))
        return [int(i) for i in divided[minibatch % len(divided)]]

    def _generated(self, number: int, model: nn.Module) -> Rollout:
        prompts = list(self._prompts.batches(number, model))
        groups = self._learner.answered(cast("LanguageModel", model), prompts, number)
        experiences = [
            Experience.of(group.prompt, completion, columns)
            for group, credit in zip(groups, self._learner.credited(groups), strict=True)
            for completion, columns, rewarded in zip(group.completions, credit, group.rewarded, strict=True)
            if rewarded
        ]
        if not experiences:
            raise MacllmError(
                f"no answer of rollout {number + 1} has a reward",
                cause=f"every reward is NaN, infinite or None, the first at {groups[0].where}",
                remedy="a reward that is a finite number for some answers",
            )
        return Rollout(number, experiences, _metrics(groups))


def _metrics(groups: Sequence[AnswerGroup]) -> dict[str, float]:
    """Means over answers, and the share of groups whose rewards are all the same."""
    rewards = np.concatenate([group.rewards for group in groups])
    valid = np.isfinite(rewards)
    completions = [each for group in groups for each in group.completions]
    spread = [np.ptp(group.rewards[group.rewarded]) if group.rewarded.any() else 0.0 for group in groups]
    found = {"reward": rewards[valid].mean()}
    if len(groups[0].completions) > 1:
        found["zero_variance"] = np.mean(np.array(spread) == 0)
    found |= {
        "truncated": np.mean([each.truncated for each in completions]),
        "invalid_rewards": 1 - valid.mean(),
        "reward_std": rewards[valid].std(),
        "length": np.mean([len(each) for each in completions]),
    }
    return {name: float(np.float32(value)) for name, value in found.items()}

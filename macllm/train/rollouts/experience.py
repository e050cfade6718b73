"""Answers with what they are trained by, and the rollout that a snapshot keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import mlx.core as mx
import numpy as np

from macllm.train.contract import Arrays
from macllm.train.render import Example

from .sampling import SampledCompletion

Columns = Mapping[str, np.ndarray]
"""Numbers of the tokens of a completion by name, each (C,) float32."""


@dataclass(frozen=True)
class AnswerGroup:
    """The completions of one prompt (P,), their rewards (G,) float64, and numbers of their tokens.

    A reward of NaN is none: its completion is not trained on.
    """

    prompt: np.ndarray
    where: str
    completions: Sequence[SampledCompletion]
    rewards: np.ndarray
    columns: Sequence[Columns]

    @property
    def rewarded(self) -> np.ndarray:
        """True for the completions with a reward, (G,)."""
        return np.isfinite(self.rewards)


@dataclass(frozen=True)
class Experience:
    """A prompt and its completion (P + C,) int32, and numbers of the completion's tokens."""

    tokens: np.ndarray
    prompt_length: int
    columns: Columns

    def __len__(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def example(self) -> Example:
        """The tokens with the loss on the completion."""
        return Example(self.tokens, np.arange(len(self.tokens)) >= self.prompt_length, "a generated answer")

    @classmethod
    def of(cls, prompt: np.ndarray, completion: SampledCompletion, columns: Columns) -> Self:
        """The experience of a completion after its prompt."""
        return cls(np.concatenate([prompt, completion.tokens]).astype(np.int32), len(prompt), columns)


@dataclass(frozen=True)
class Rollout:
    """The experiences that some steps are trained on; `number` counts rollouts.

    `metrics` are numbers about all its answers, also about those without a reward.
    """

    number: int
    experiences: Sequence[Experience]
    metrics: Mapping[str, float]

    def arrays(self) -> Arrays:
        """The rollout as named arrays."""
        made = {
            "number": np.array([self.number], np.int64),
            "tokens": np.concatenate([each.tokens for each in self.experiences]),
            "lengths": np.array([len(each.tokens) for each in self.experiences], np.int32),
            "prompts": np.array([each.prompt_length for each in self.experiences], np.int32),
        }
        for name in self.experiences[0].columns:
            made[f"column.{name}"] = np.concatenate([each.columns[name] for each in self.experiences])
        made |= {f"metric.{name}": np.array([value], np.float32) for name, value in self.metrics.items()}
        return {name: mx.array(array) for name, array in made.items()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """The rollout of `arrays()`."""
        found = {name: np.array(array) for name, array in arrays.items()}
        columns = {name.removeprefix("column."): found[name] for name in found if name.startswith("column.")}
        metrics = {n.removeprefix("metric."): float(found[n][0]) for n in found if n.startswith("metric.")}
        experiences: list[Experience] = []
        start = first = 0
        for length, prompt in zip(found["lengths"].tolist(), found["prompts"].tolist(), strict=True):
            own = slice(first, first + length - prompt)
            named = {name: column[own] for name, column in columns.items()}
            experiences.append(Experience(found["tokens"][start : start + length], prompt, named))
            start, first = start + length, own.stop
        return cls(int(found["number"][0]), experiences, metrics)

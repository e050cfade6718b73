"""Contract between the training loop and its objectives, sources of batches and optimizers.

Imports no mlx, so that rows are encoded and checked without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

    from macllm.nn.protocol import LanguageModel

    from .events import Counts
    from .render import TextTokenizer
    from .rows import Row

Arrays = dict[str, "mx.array"]


class AnyExample(Protocol):
    """A row in the form that an objective trains on; its length is its longest sequence, in tokens."""

    @property
    def where(self) -> str:
        """File and line of the row."""
        ...

    @property
    def sequences(self) -> Sequence[np.ndarray]:
        """The tokens of each of its sequences, (L,) int32."""
        ...

    @property
    def splittable(self) -> bool:
        """True if pieces of the example are examples too."""
        ...

    @property
    def num_target_tokens(self) -> int:
        """Number of supervised tokens."""
        ...

    @property
    def ends(self) -> bool:
        """True if the end of an answer or text is supervised."""
        ...

    def __len__(self) -> int: ...

    def cut(self, start: int, stop: int) -> Self:
        """The example with the tokens from `start` to `stop` of each of its sequences."""
        ...

    def fingerprint(self) -> bytes:
        """Bytes that are equal for examples with the same tokens and supervision only."""
        ...


@runtime_checkable
class InPieces(Protocol):
    """An example that is split in a way of its own, as one with special tokens around each piece."""

    def pieces(self, most: int) -> Sequence[Self]:
        """Examples of at most `most` tokens, together the whole."""
        ...


class AnyBatch(Protocol):
    """Examples side by side."""

    @property
    def num_target_tokens(self) -> int:
        """Number of supervised tokens."""
        ...


class Loss(NamedTuple):
    """A loss as a sum and the number of units that it sums over (supervised tokens, pairs, ...).

    `metrics` are sums over the same units. The loop divides once per step, after all micro-batches, so results do not
    depend on the split into micro-batches.
    """

    numerator: mx.array  # a scalar
    denominator: float
    metrics: Mapping[str, mx.array] = {}  # scalars


M_contra = TypeVar("M_contra", contravariant=True)
E = TypeVar("E", bound=AnyExample)
B = TypeVar("B", bound=AnyBatch)
E_contra = TypeVar("E_contra", bound=AnyExample, contravariant=True)
B_co = TypeVar("B_co", bound=AnyBatch, covariant=True)


class Objective(Protocol[M_contra, E, B]):
    """An objective: rows to examples, examples to batches, a batch and a kind of model to a loss."""

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[E]:
        """The examples of a row. Raises DataError for a row that the objective cannot use."""
        ...

    def collate(self, examples: Sequence[E], random: np.random.Generator) -> B:
        """One batch. All that is random in it (masked tokens, corrupted spans) is drawn from `random`."""
        ...

    def loss(self, model: M_contra, batch: B) -> Loss:
        """The loss of a batch; no other effects."""
        ...


@runtime_checkable
class Packs(Protocol[E_contra, B_co]):
    """An objective that can put several examples into one row of a batch, none of which sees another."""

    def pack(self, bins: Sequence[Sequence[E_contra]], random: np.random.Generator) -> B_co:
        """One batch with a row for each bin of examples; random as in `collate`."""
        ...


@runtime_checkable
class Summarizes(Protocol):
    """An objective whose reported metrics follow from the means of those that it sums."""

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """The metrics to report, from the sums of `Loss.metrics` per unit of the loss."""
        ...


@runtime_checkable
class Measures(Protocol[M_contra, B]):
    """An objective whose loss needs a number of the whole step, taken without gradients."""

    def measured(self, model: M_contra, batches: Sequence[B], step: Sequence[B]) -> list[B]:
        """The batches with this number, taken with the current weights over `step`, which they are part of."""
        ...


class Source(Protocol[B_co]):
    """The micro-batches of each optimizer step."""

    @property
    def counts(self) -> Counts:
        """Statistics of the rows behind the batches."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in a pass over the data."""
        ...

    def batches(self, step: int, model: nn.Module) -> Iterator[B_co]:
        """The micro-batches of step `step`, from 0: a function of (seed, step, weights of `model`) alone."""
        ...


@runtime_checkable
class Keeps(Protocol):
    """A source that keeps what it generated for several steps; a snapshot has it."""

    def kept(self, step: int) -> Arrays:
        """The arrays that step `step` needs of earlier ones; empty if it begins anew."""
        ...

    def restore(self, kept: Arrays) -> None:
        """Become the source that `kept` these arrays."""
        ...


@runtime_checkable
class Generates(Protocol[B_co]):
    """An objective whose batches are generated with the current weights, from batches of prompts."""

    def bound(self, model: LanguageModel, tokenizer: TextTokenizer) -> Self:
        """The objective with what generates and rewards: `model` and the tokenizer."""
        ...

    def source(self, prompts: Source[Any], micro_batch: int) -> Source[B_co]:
        """The source of generated batches, of answers to `micro_batch` prompts each."""
        ...

    def evaluate(self, model: LanguageModel, batch: Any) -> Loss:
        """The measure of validation on a batch of prompts, as a loss: lower is better."""
        ...


@dataclass(frozen=True)
class OptimizerState:
    """Named slots, each with an array for some of the weights by their names, and the number of updates."""

    slots: Mapping[str, Arrays]
    count: int


class Optimizer(Protocol):
    """An optimizer as two pure functions."""

    def init(self, weights: Arrays) -> OptimizerState:
        """The state before the first update."""
        ...

    def update(
        self, weights: Arrays, gradients: Arrays, state: OptimizerState, rate: float, scale: mx.array
    ) -> tuple[Arrays, OptimizerState]:
        """Weights and state after one step along `scale` * gradients; the arguments are not modified."""
        ...

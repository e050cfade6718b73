"""What a run tells while it goes: frozen, without arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Advanced:
    """Progress between two other events: rows made into tokens, steps, batches of an evaluation. Not kept on disk."""

    work: Literal["reading", "training", "evaluating"]
    done: int
    total: int


@dataclass(frozen=True)
class Prepared:
    """The rows are tokens and the model is ready. Counts say what became of every row and token."""

    rows: int
    tokens: int
    supervised_tokens: int
    truncated_rows: int
    lost_tokens: int
    split_rows: int
    dropped_rows: int
    unsupervised_rows: int
    expanded_rows: int
    valid_rows: int
    parameters: int
    trained_parameters: int
    steps: int
    first_step: int


@dataclass(frozen=True)
class Step:
    """Means over the steps since the last report, of supervised tokens alone: `loss` in nats for each, and speed."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    peak_bytes: int


@dataclass(frozen=True)
class Evaluated:
    """The loss on the validation rows after `step` steps, in nats per supervised token."""

    step: int
    loss: float
    tokens: int
    best: bool


@dataclass(frozen=True)
class Saved:
    """A snapshot, an adapter or a checkpoint is on disk."""

    step: int
    path: str


@dataclass(frozen=True)
class Finished:
    """The end of a run; `loss` is that of the weights handed over, on validation data if there is some."""

    step: int
    loss: float
    seconds: float
    path: str


TrainEvent = Advanced | Prepared | Step | Evaluated | Saved | Finished

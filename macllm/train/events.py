"""Events of a training run: frozen values without arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Advanced:
    """Progress: rows tokenized, steps trained or batches evaluated. Not written to metrics.jsonl."""

    work: Literal["reading", "training", "evaluating"]
    done: int
    total: int


@dataclass(frozen=True)
class Prepared:
    """Rows are tokenized and the model is loaded; statistics of rows, tokens and parameters."""

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
    """Means since the last report: `loss` in nats per supervised token, supervised tokens per second."""

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
    """End of a run; `loss` of the exported weights, on validation data if the run has any."""

    step: int
    loss: float
    seconds: float
    path: str


TrainEvent = Advanced | Prepared | Step | Evaluated | Saved | Finished

"""Events of a training run: frozen values without arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Work = Literal[
    "reading",
    "encoding",
    "preparing",
    "asking the teacher",
    "training",
    "evaluating",
    "saving",
    "revising",
    "comparing",
]


@dataclass(frozen=True)
class Advanced:
    """Progress of some work: rows, steps, batches, snapshots or questions that are done.

    A total of 0 is not known yet.

    After a step, the other fields tell about this step: its loss per unit, its supervised tokens, its seconds, and
    MLX's memory in bytes, now and at most. Not written to metrics.jsonl.
    """

    work: Work
    done: int
    total: int
    loss: float | None = None
    learning_rate: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    active_bytes: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Counts:
    """Statistics of a file's rows, and the number of rows of each kind."""

    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    truncated_rows: int = 0
    lost_tokens: int = 0
    split_rows: int = 0
    dropped_rows: int = 0
    unsupervised_rows: int = 0
    expanded_rows: int = 0
    unended_rows: int = 0  # no end of an answer is among the supervised tokens
    unused_column_rows: int = 0  # with tools or variables for a template, which their text does not use
    unwritten_rows: int = 0  # with calls or reasoning that the template does not write
    kinds: Mapping[str, int] = field(default_factory=dict[str, int])
    shared_rows: int = 0  # validation examples that are training examples too
    bins: int = 0  # rows of batches in an epoch with packing; 0 without
    bin_tokens: int = 0  # tokens that each has room for
    binned: int = 0  # examples in them


@dataclass(frozen=True)
class Prepared:
    """Rows are tokenized and the model is loaded; statistics of rows, tokens and parameters.

    The first counts are those of the training rows; `valid` has those of the validation rows.
    """

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
    unended_rows: int = 0
    unused_column_rows: int = 0
    unwritten_rows: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict[str, int])
    sampled_rows: int = 0  # validation examples in each evaluation
    shared_rows: int = 0
    bins: int = 0
    bin_tokens: int = 0
    binned: int = 0
    valid: Counts = Counts()
    steps_per_eval: int = 0  # steps between two evaluations; 0: none between the first and the last step
    recomputes: bool = False  # layers can be computed again for the gradients
    notes: Sequence[str] = ()  # what macllm has warned of so far


@dataclass(frozen=True)
class Step:
    """Means since the last report, per unit of the objective (a supervised token, a pair, ...).

    `loss` is in nats, `metrics` are the objective's, and `tokens_per_second` counts supervised tokens.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    peak_bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Evaluated:
    """The loss and the metrics on the validation rows after `step` steps, per unit as in `Step`."""

    step: int
    loss: float
    tokens: int
    best: bool
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


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


@dataclass(frozen=True)
class Stopped:
    """Interrupted after `step` steps; the run can be resumed."""

    step: int


@dataclass(frozen=True)
class RunFailed:
    """Ended by an error after `step` steps."""

    step: int
    error: str
    cause: str | None = None


@dataclass(frozen=True)
class Skipped:
    """The steps from `first` to `step` are given up: training goes on from the weights of the step before."""

    step: int
    first: int
    cause: str


@dataclass(frozen=True)
class Paused:
    """Training waits after `step` steps, with a snapshot of them."""

    step: int
    cause: str


@dataclass(frozen=True)
class Continued:
    """The end of a pause."""

    step: int
    seconds: float


@dataclass(frozen=True)
class Restarted:
    """The training process was aborted, and goes on in a new one from the snapshot of `step`.

    If its memory was full, `changed` has the settings that take less from now on, each before and after.
    """

    step: int
    cause: str
    attempt: int  # since the last new snapshot; 0 with other settings
    most: int
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict[str, tuple[Any, Any]])


@dataclass(frozen=True)
class Working:
    """The training process is at work, and the last event was `seconds` ago. Not written to metrics.jsonl."""

    seconds: float


@dataclass(frozen=True)
class TrackerFailed:
    """Reports to a tracker ended with an error; the run goes on. Not written to metrics.jsonl."""

    name: str
    cause: str


TrainEvent = (
    Advanced
    | Prepared
    | Step
    | Evaluated
    | Saved
    | Finished
    | Stopped
    | RunFailed
    | Restarted
    | Skipped
    | Paused
    | Continued
    | Working
    | TrackerFailed
)


def record(event: TrainEvent) -> dict[str, Any]:
    """The event as a JSON object with its name. Numbers that are not finite are None."""
    return _finite({"event": type(event).__name__, **asdict(event)})


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

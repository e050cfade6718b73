"""Default learning rates and epochs of fine-tuning, by objective and size of the model."""

from __future__ import annotations

from typing import NamedTuple

from .objective import FinetuneObjective


class Rate(NamedTuple):
    """Peak learning rate of an adapter with AdamW, and passes over the data, below a number of parameters."""

    below: float
    learning_rate: float
    epochs: float


_ANSWERS = (Rate(50e6, 1e-3, 10.0), Rate(float("inf"), 2e-4, 3.0))
# The large ones are usual (arXiv:2310.16944 and others), the small ones learn on models of 6 and 135 million
# parameters. Another pass over the same pairs moves the model further from its start than it teaches.
_PREFERENCES = (Rate(50e6, 5e-4, 3.0), Rate(1e9, 5e-5, 1.0), Rate(float("inf"), 5e-6, 1.0))
_OF: dict[FinetuneObjective, tuple[Rate, ...]] = dict.fromkeys(
    ("dpo", "kto", "orpo", "simpo", "grpo", "ppo"), _PREFERENCES
)


def fitting(objective: FinetuneObjective, parameters: int) -> Rate:
    """The defaults of an objective for a model with this number of parameters."""
    return next(rate for rate in _OF.get(objective, _ANSWERS) if parameters < rate.below)

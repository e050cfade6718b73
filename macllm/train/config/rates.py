"""Default learning rates and epochs of fine-tuning, by size of the model."""

from __future__ import annotations

from typing import NamedTuple


class Rate(NamedTuple):
    """Peak learning rate of an adapter with AdamW, and passes over the data, below a number of parameters."""

    below: float
    learning_rate: float
    epochs: float


ANSWERS = (Rate(50e6, 1e-3, 10.0), Rate(float("inf"), 2e-4, 3.0))
"""Defaults of objectives that learn from examples."""
# The large ones are usual (arXiv:2310.16944 and others), the small ones learn on models of 6 and 135 million
# parameters. Another pass over the same pairs moves the model further from its start than it teaches.
PREFERENCES = (Rate(50e6, 5e-4, 3.0), Rate(1e9, 5e-5, 1.0), Rate(float("inf"), 5e-6, 1.0))
"""Defaults of objectives that learn from preferences and rewards."""


def fitting(rates: tuple[Rate, ...], parameters: int) -> Rate:
    """The defaults for a model with this number of parameters."""
    return next(rate for rate in rates if parameters < rate.below)

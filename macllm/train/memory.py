"""The least memory that a run needs, from its settings and its rows: below it, the run cannot fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import TrainConfig
from .events import Prepared

_FLOAT, _HALF = 4, 2  # bytes; weights are trained in float32, whatever the type of the base
# Vectors of a layer that wait for the gradients, for each token: inputs of the norms and of the linear layers,
# queries, keys, values and outputs of attention; gate, input and product of the feed-forward part.
_WIDTHS, _INNER_WIDTHS = 7, 3


def least_bytes(config: TrainConfig, event: Prepared, shape: Mapping[str, Any], frozen_bytes: int) -> int:
    """Bytes of weights, gradients, moments and activations of rows of mean length.

    `shape` is the model's config.json; where it does not tell widths, activations count as nothing. `frozen_bytes` are
    those of the weights that are not trained.
    """
    tokens = config.batch_size * event.tokens // max(1, event.rows)
    text = shape.get("text_config")
    text = {**shape, **text} if isinstance(text, Mapping) else shape
    width, inner, layers = (_whole(text, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    vector = tokens * (_FLOAT if event.trained_parameters == event.parameters else _HALF)
    of_layer = vector * (_WIDTHS * width + _INNER_WIDTHS * inner)
    activations = layers * vector * width + of_layer if config.grad_checkpoint else layers * of_layer
    return frozen_bytes + event.trained_parameters * (2 * _FLOAT + _moments(config)) + activations


def _moments(config: TrainConfig) -> int:
    """Bytes of the optimizer's state for a parameter, at least."""
    first = 1 if config.first_moment_bits == 8 else _FLOAT
    return first + _FLOAT if config.optimizer == "adamw" else first


def _whole(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return value if isinstance(value, int) and value > 0 else 0

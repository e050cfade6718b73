"""Parameters of a model that is trained: their number, their values, and layers computed again."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from macllm.errors import UsageError
from macllm.nn.recompute import checkpoint_layers

from .contract import Arrays


def are_finite(weights: Arrays) -> bool:
    """True if no weight is infinite or NaN."""
    return all(bool(mx.isfinite(weight).all()) for weight in weights.values())


def size_of(parameters: Any) -> int:
    """Number of values in a tree of arrays."""
    return sum(array.size for _, array in tree_flatten(parameters) if isinstance(array, mx.array))


def compute_layers_again(model: nn.Module, enabled: bool) -> None:
    """Compute layers again for their gradients, or not.

    Raises UsageError for a model without known layers.
    """
    if not checkpoint_layers(model, enabled) and enabled:
        raise UsageError(
            "grad_checkpoint needs a model of a supported family",
            cause=f"{type(model).__name__} has no layers that can be computed again",
            remedy="leave grad_checkpoint out",
        )

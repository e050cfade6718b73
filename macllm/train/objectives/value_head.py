"""A value head on a model's trunk: the worth of the rest of an answer, from a hidden state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

_NAME = "value_head"


class ValueHead(nn.Module):
    """A linear map to one number, in float32; it begins at 0, so that the first values are no noise."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = mx.zeros((dim,)), mx.zeros(())

    def __call__(self, states: mx.array) -> mx.array:
        """(..., D) -> (...)."""
        return (states.astype(mx.float32) * self.weight).sum(axis=-1) + self.bias


def attach_value_head(model: nn.Module, dim: int) -> None:
    """Give the model a trainable value head, in place."""
    setattr(model, _NAME, ValueHead(dim))


def value_head(model: object) -> Callable[[mx.array], mx.array]:
    """The value head of a model that has one."""
    return cast("dict[str, Any]", model)[_NAME]


def drop_value_head(model: nn.Module) -> None:
    """Take the value head away, if there is one: the model that is exported has none."""
    cast("dict[str, Any]", model).pop(_NAME, None)

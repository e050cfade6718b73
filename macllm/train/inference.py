"""Inference on a model that is trained, between its steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import mlx.nn as nn

from macllm.ops.quantized import using_activations


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """A block without dropout, and with activations in floating point as in training."""
    module = cast("nn.Module", model)
    was_training = module.training
    module.eval()
    try:
        with using_activations("float"):
            yield
    finally:
        module.train(was_training)

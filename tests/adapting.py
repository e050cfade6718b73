"""Loss and gradients of a LoRA adapter on a few tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from macllm.nn import lora


def adapter_gradients(model: Any, tokens: mx.array) -> dict[str, mx.array]:
    """Gradients of all weights of a new adapter whose B matrices are not zero."""
    lora.apply(model, rank=2, alpha=4, seed=3)
    for wrap in lora.adapters(model).values():
        wrap.lora_b = mx.ones_like(wrap.lora_b) * 0.1
    return dict(tree_flatten(nn.value_and_grad(model, lambda m: mx.square(m(tokens)).mean())(model)[1]))


def assert_float32_like(found: Mapping[str, mx.array], wanted: Mapping[str, mx.array]) -> None:
    """Compare arrays by name within float32's rounding."""
    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        assert found[name].dtype == mx.float32
        largest = np.abs(np.array(want)).max()
        np.testing.assert_allclose(np.array(found[name]), np.array(want), atol=2e-5 * largest)

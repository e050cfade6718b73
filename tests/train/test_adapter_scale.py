"""The scale of an adapter's update."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macllm.nn import lora


def test_the_update_is_scaled_by_alpha_over_rank() -> None:
    """arXiv:2106.09685, 4.1; by alpha over the root of the rank in arXiv:2312.03732."""
    x = mx.array(np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32))
    for rooted, divisor in ((False, 4.0), (True, math.sqrt(4.0))):
        model = nn.Sequential(nn.Sequential(nn.Linear(16, 8)))
        before = np.array(model(x)).astype(np.float64)
        lora.apply(model, rank=4, alpha=10.0, use_rslora=rooted)
        (layer,) = lora.adapters(model).values()
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(1))
        a, b = (np.array(each).astype(np.float64) for each in (layer.lora_a, layer.lora_b))
        want = 10.0 / divisor * np.array(x).astype(np.float64) @ a @ b
        np.testing.assert_allclose(np.array(model(x)) - before, want, rtol=0, atol=1e-5 * np.abs(want).max())

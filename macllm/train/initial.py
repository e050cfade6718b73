"""Random initial weights."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

# Linear layers whose outputs are added to the residual stream.
_INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")


def initialize(model: nn.Module, std: float, seed: int) -> None:
    """Draw every matrix of `model` from N(0, std), in place; norms stay as built, biases become 0.

    Layers that write to the residual stream are drawn with std / sqrt(2 * layers), so that its variance does not
    grow with depth (Radford et al. 2019, 2.3).
    """
    weights = dict(tree_flatten(model.trainable_parameters()))
    layers = len({name.split(".layers.")[1].split(".")[0] for name in weights if ".layers." in name})
    drawn = {}
    for name, key in zip(sorted(weights), mx.random.split(mx.random.key(seed), len(weights)), strict=True):
        weight = weights[name]
        if weight.ndim > 1:
            spread = std / math.sqrt(2 * layers) if name.endswith(_INTO_RESIDUAL) else std
            drawn[name] = (mx.random.normal(weight.shape, key=key) * spread).astype(weight.dtype)
        elif name.endswith("bias"):
            drawn[name] = mx.zeros_like(weight)
    model.update(tree_unflatten(list(drawn.items())))
    mx.eval(model.parameters())

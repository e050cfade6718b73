"""Causal language modelling: cross-entropy of supervised next tokens."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from macllm.nn.protocol import LanguageModel
from macllm.ops.cross_entropy import cross_entropy
from macllm.train.data import Batch


def clm(model: LanguageModel, batch: Batch) -> tuple[mx.array, float, dict[str, float]]:
    """Sum over targets of weight * -log p(target), the sum of the weights, and no metrics.

    Only positions with a weight go through the head. Right padding needs no attention mask in a causal model.
    """
    hidden = model.hidden(mx.array(batch.inputs))
    chosen = np.flatnonzero(batch.weights)
    picked = hidden.reshape(-1, hidden.shape[-1])[mx.array(chosen)]
    targets = mx.array(batch.targets.reshape(-1)[chosen])
    weights = batch.weights.reshape(-1)[chosen]
    losses = cross_entropy(model.logits(picked), targets)
    return (losses * mx.array(weights)).sum(), float(weights.sum(dtype=np.float64)), {}

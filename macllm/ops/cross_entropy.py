"""The loss of a language model."""

from __future__ import annotations

import mlx.core as mx


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """-log softmax(logits)[target], in nats and float32: (..., V), int (...) -> (...)."""
    wide = logits.astype(mx.float32)
    picked = mx.take_along_axis(wide, targets[..., None], axis=-1).squeeze(-1)
    return mx.logsumexp(wide, axis=-1) - picked

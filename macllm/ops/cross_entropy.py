"""The loss of a language model."""

from __future__ import annotations

import mlx.core as mx

from .dispatch import native


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """-log softmax(logits)[target], in nats and float32: (..., V), int (...) -> (...)."""
    wide = logits.astype(mx.float32)
    kernels = native(wide)
    if kernels is not None:
        return kernels.cross_entropy(wide, targets)[0]
    picked = mx.take_along_axis(wide, targets[..., None], axis=-1).squeeze(-1)
    return mx.logsumexp(wide, axis=-1) - picked

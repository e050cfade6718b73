"""Drawing a token from logits."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .dispatch import native


class Filters(NamedTuple):
    """What may be drawn; see `generate.request.SamplingParams`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float


def sample(logits: mx.array, filters: Filters, seed: int, step: int) -> mx.array | None:
    """The token () drawn from float32 logits (V,) in one pass; None where no kernel serves and filters go one by one.

    Seed and step are the words of the random key. The noise of a candidate is that of its place among the candidates.
    """
    kernels = native(logits)
    return None if kernels is None else kernels.sample(logits, seed, step, *filters)


def logsumexp(logits: mx.array) -> mx.array:
    """log sum e^x over the last axis: (..., V) -> (...)."""
    kernels = native(logits)
    return mx.logsumexp(logits, axis=-1) if kernels is None else kernels.logsumexp(logits)

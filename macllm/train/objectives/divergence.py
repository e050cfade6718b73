"""Divergences between the next-token distributions of a teacher and a student."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from macllm.ops.cross_entropy import log_sum_exp, probabilities
from macllm.train.config import Divergence, OtherTokens

_NEVER = -1e30  # a log-probability of which no kernel computes a difference of infinities
_FEW = 1024  # exponentials that take no time; of more, a kernel is twenty times as fast, and 2e-7 nats off


class Likeliest(NamedTuple):
    """The likeliest tokens (N, k) of rows, their log-probabilities (N, k), and that of all others (N, 1)."""

    tokens: mx.array
    log_p: mx.array
    log_others: mx.array

    def rows(self, chosen: slice) -> Likeliest:
        """The likeliest tokens of the rows in a slice."""
        return Likeliest(*(array[chosen] for array in self))


def log_softmax(logits: mx.array, temperature: float) -> mx.array:
    """Log-probabilities of logits divided by a temperature, in float32: (..., V) -> (..., V)."""
    scaled = logits.astype(mx.float32) / temperature
    return scaled - log_sum_exp(scaled)


def likeliest(log_p: mx.array, count: int) -> Likeliest:
    """The `count` likeliest tokens of each row, in no order: (N, V)."""
    size = log_p.shape[-1]
    if count >= size:
        tokens = mx.broadcast_to(mx.arange(size, dtype=mx.uint32), log_p.shape)
        return Likeliest(tokens, log_p, mx.full((log_p.shape[0], 1), -mx.inf))
    tokens = mx.argpartition(log_p, size - count, axis=-1)[:, size - count :]
    return Likeliest(tokens, mx.take_along_axis(log_p, tokens, axis=-1), _log_others(log_p, tokens))


def compared(known: Likeliest, log_q: mx.array, others: OtherTokens) -> tuple[mx.array, mx.array]:
    """Log-probabilities of teacher and student over the same events, (N, k + 1) twice.

    A bucket of all other tokens makes both coarser distributions: their divergence is a lower bound of that over all
    tokens (data processing inequality), and the student's mass outside of the teacher's tokens counts. With the others
    left out, both are normalized over the k tokens: (N, k) twice. `log_q` is that of the student over all tokens, (N,
    V).
    """
    picked = mx.take_along_axis(log_q, known.tokens, axis=-1)
    if known.tokens.shape[-1] == log_q.shape[-1]:  # there are no others
        return known.log_p, picked
    if others == "bucket":
        both = ([known.log_p, known.log_others], [picked, _log_others(log_q, known.tokens)])
        return mx.concatenate(both[0], axis=-1), mx.concatenate(both[1], axis=-1)
    return log_softmax(known.log_p, 1.0), log_softmax(picked, 1.0)


def divergence(log_p: mx.array, log_q: mx.array, kind: Divergence, share: float = 0.5) -> mx.array:
    """Divergence of a student q from a teacher p, in nats: log-probabilities (N, M) twice -> (N,).

    forward: KL(p || q); reverse: KL(q || p); jsd: share * KL(p || m) + (1 - share) * KL(q || m), where the mixture m is
    share * p + (1 - share) * q (arXiv:2306.13649, eq. 1).
    """
    match kind:
        case "forward":
            return _kl(log_p, log_q)
        case "reverse":
            return _kl(log_q, log_p)
        case "jsd":
            mixture = mx.logaddexp(log_p + float(np.log(share)), log_q + float(np.log1p(-share)))
            return share * _kl(log_p, mixture) + (1 - share) * _kl(log_q, mixture)


def _kl(log_a: mx.array, log_b: mx.array) -> mx.array:
    """KL(a || b). The terms b - a sum to 0, and cancel errors of normalization."""
    exponential = probabilities if log_a.shape[-1] > _FEW else mx.exp
    a, b = exponential(log_a), exponential(log_b)
    return (a * (log_a - log_b) + (b - a)).sum(axis=-1)


def _log_others(log_p: mx.array, tokens: mx.array) -> mx.array:
    """log of the probability of all but some tokens: (N, V), (N, k) -> (N, 1).

    A sum over them: 1 - p would round away what little is left.
    """
    chosen = mx.put_along_axis(mx.zeros(log_p.shape, dtype=mx.bool_), tokens, mx.array(True), axis=-1)
    return log_sum_exp(mx.where(chosen, _NEVER, log_p))

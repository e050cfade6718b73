"""ORPO: likelihood of the better answer, and the odds of it against the worse one (arXiv:2403.07691)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macllm.nn.protocol import LanguageModel
from macllm.train.config import FinetuneConfig
from macllm.train.contract import Loss

from .pairs import OfPairs, PairBatch, halves, log_probabilities, margin_metrics
from .parts import Parts

_LN2 = float(np.log(2.0))
_NEAREST = -float(np.finfo(np.float32).eps)  # the log-probability closest to 0 with finite odds


@dataclass(frozen=True)
class ORPO(OfPairs):
    """The objective; `beta` weighs the odds ratio (lambda in the paper). No reference model is needed."""

    beta: float = 0.1
    now: datetime | None = None

    def loss(self, model: LanguageModel, batch: PairBatch) -> Loss:
        """Sum over pairs of -log p(chosen) - beta * log sigmoid(log odds ratio) (eq. 6, 7).

        Probabilities are means per token of an answer.
        TRL's likelihood covers the prompt too and is a mean over all tokens of a batch; the paper's, and this one, is
        that of the answer alone, for each pair.
        """
        sums, counts = log_probabilities(model, batch.rows)
        chosen, rejected = halves(sums / mx.maximum(counts, 1))
        ratio = _log_odds(chosen) - _log_odds(rejected)
        losses = -chosen - self.beta * nn.log_sigmoid(ratio)
        return Loss(losses.sum(), float(len(batch)), margin_metrics(chosen, rejected))


def of(config: FinetuneConfig, parts: Parts) -> ORPO:
    """The objective of a run."""
    return ORPO(config.beta or 0.1, config.now)


def _log_odds(log_p: mx.array) -> mx.array:
    """log(p / (1 - p)) from log p, without cancellation at either end (Maechler 2012, log1mexp)."""
    log_p = mx.minimum(log_p, _NEAREST)
    is_likely = log_p > -_LN2
    likely, unlikely = mx.where(is_likely, log_p, -_LN2), mx.where(is_likely, -_LN2, log_p)
    return log_p - mx.where(is_likely, mx.log(-mx.expm1(likely)), mx.log1p(-mx.exp(unlikely)))

"""SimPO: the mean log-probability as reward, and a target margin; no reference (arXiv:2405.14734)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import mlx.core as mx
import mlx.nn as nn

from macllm.nn.protocol import LanguageModel
from macllm.train.config import FinetuneConfig
from macllm.train.contract import Loss

from .pairs import OfPairs, PairBatch, halves, log_probabilities, margin_metrics
from .parts import Parts


@dataclass(frozen=True)
class SimPO(OfPairs):
    """The objective; `beta` scales the rewards, which are to differ by `gamma`."""

    beta: float = 2.0
    gamma: float = 1.0
    now: datetime | None = None

    def loss(self, model: LanguageModel, batch: PairBatch) -> Loss:
        """Sum over pairs of -log sigmoid(reward(chosen) - reward(rejected) - gamma) (eq. 6)."""
        sums, counts = log_probabilities(model, batch.rows)
        chosen, rejected = halves(self.beta * sums / mx.maximum(counts, 1))
        losses = -nn.log_sigmoid(chosen - rejected - self.gamma)
        return Loss(losses.sum(), float(len(batch)), margin_metrics(chosen, rejected))


def of(config: FinetuneConfig, parts: Parts) -> SimPO:
    """The objective of a run."""
    return SimPO(config.beta or 2.0, config.gamma, config.now)

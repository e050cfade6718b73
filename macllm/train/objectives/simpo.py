"""SimPO: the mean log-probability as reward, and a target margin; no reference (arXiv:2405.14734)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macllm.nn.protocol import LanguageModel
from macllm.train.config import FinetuneConfig
from macllm.train.contract import Loss
from macllm.train.render import TextTokenizer
from macllm.train.rows import Row

from .pairs import Pair, PairBatch, collate_pairs, halves, log_probabilities, margin_metrics, to_pair
from .parts import Parts


@dataclass(frozen=True)
class SimPO:
    """The objective; `beta` scales the rewards, which are to differ by `gamma`."""

    beta: float = 2.0
    gamma: float = 1.0
    now: datetime | None = None

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[Pair]:
        """The pair of a row."""
        return [to_pair(row, tokenizer, self.now)]

    def collate(self, examples: Sequence[Pair], random: np.random.Generator) -> PairBatch:
        """One batch; nothing in it is random."""
        return collate_pairs(examples)

    def loss(self, model: LanguageModel, batch: PairBatch) -> Loss:
        """Sum over pairs of -log sigmoid(reward(chosen) - reward(rejected) - gamma) (eq. 6)."""
        sums, counts = log_probabilities(model, batch.rows)
        chosen, rejected = halves(self.beta * sums / mx.maximum(counts, 1))
        losses = -nn.log_sigmoid(chosen - rejected - self.gamma)
        return Loss(losses.sum(), float(len(batch)), margin_metrics(chosen, rejected))


def of(config: FinetuneConfig, parts: Parts) -> SimPO:
    """The objective of a run."""
    return SimPO(config.beta or 2.0, config.gamma, config.now)

"""Direct preference optimization (arXiv:2305.18290), and other losses of the same log-ratios."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macllm.nn.protocol import LanguageModel
from macllm.train.config import FinetuneConfig, PreferenceLoss
from macllm.train.contract import Loss
from macllm.train.data import Dataset
from macllm.train.events import Advanced

from . import reference
from .pairs import OfPairs, Pair, PairBatch, halves, log_probabilities, margin_metrics
from .parts import Parts

_DISCOPOP_TAU = 0.05  # the paper's


@dataclass(frozen=True)
class Ratios:
    """log p(answer) - log p_reference(answer) of pairs, (N,) float32 each, and the tokens of the answers.

    `beta` scales them, and `smoothing` is the share of pairs that are in the wrong order.
    """

    chosen: mx.array
    rejected: mx.array
    chosen_tokens: mx.array
    rejected_tokens: mx.array
    beta: float
    smoothing: float

    @property
    def logits(self) -> mx.array:
        """beta * (log-ratio of the better answer - that of the worse one)."""
        return self.beta * (self.chosen - self.rejected)

    @property
    def mean_difference(self) -> mx.array:
        """The difference of the log-ratios per token."""
        return self.chosen / mx.maximum(self.chosen_tokens, 1) - self.rejected / mx.maximum(self.rejected_tokens, 1)


def _sigmoid(of: Ratios) -> mx.array:
    """-log sigmoid(logits) (arXiv:2305.18290, eq. 7); with smoothing, conservative DPO."""
    return -(1 - of.smoothing) * nn.log_sigmoid(of.logits) - of.smoothing * nn.log_sigmoid(-of.logits)


def _robust(of: Ratios) -> mx.array:
    """Unbiased for a share `smoothing` of flipped labels (arXiv:2403.00409)."""
    right, flipped = -nn.log_sigmoid(of.logits), -nn.log_sigmoid(-of.logits)
    return ((1 - of.smoothing) * right - of.smoothing * flipped) / (1 - 2 * of.smoothing)


def _hinge(of: Ratios) -> mx.array:
    """max(0, 1 - logits) (arXiv:2305.10425, on log-ratios as in arXiv:2309.06657)."""
    return mx.maximum(1 - of.logits, 0)


def _ipo(of: Ratios) -> mx.array:
    """Squared distance of the difference to 1 / (2 beta) (arXiv:2310.12036, eq. 17).

    The difference is per token: not in the formula, but in the experiments of its authors, as TRL says.
    """
    return (of.mean_difference - 1 / (2 * of.beta)) ** 2


def _exo_pair(of: Ratios) -> mx.array:
    """Reverse KL divergence of the model's preference from the labels' (arXiv:2402.00856, eq. 16)."""
    log_better, log_worse = nn.log_sigmoid(of.logits), nn.log_sigmoid(-of.logits)
    of_better = mx.exp(log_better) * (log_better - float(np.log1p(-of.smoothing)))
    return of_better + mx.exp(log_worse) * (log_worse - float(np.log(of.smoothing)))


def _nca_pair(of: Ratios) -> mx.array:
    """Noise-contrastive alignment of two answers (arXiv:2402.05369)."""
    chosen, rejected = of.beta * of.chosen, of.beta * of.rejected
    return -nn.log_sigmoid(chosen) - 0.5 * nn.log_sigmoid(-chosen) - 0.5 * nn.log_sigmoid(-rejected)


def _sppo_hard(of: Ratios) -> mx.array:
    """Squared distances to +-1 / (2 beta): the better answer always wins (arXiv:2405.00675, eq. 4.7)."""
    return (of.chosen - 0.5 / of.beta) ** 2 + (of.rejected + 0.5 / of.beta) ** 2


def _apo_zero(of: Ratios) -> mx.array:
    """Raise the better answer and lower the worse one (arXiv:2408.06266, eq. 7)."""
    return mx.sigmoid(-of.beta * of.chosen) + mx.sigmoid(of.beta * of.rejected)


def _apo_down(of: Ratios) -> mx.array:
    """Lower both answers, the worse one more (arXiv:2408.06266, eq. 8)."""
    return mx.sigmoid(of.beta * of.chosen) + mx.sigmoid(-of.logits)


def _discopop(of: Ratios) -> mx.array:
    """A blend of the logistic and the exponential loss, found by search (arXiv:2406.08414, eq. 5)."""
    logits, blend = of.logits, of.logits / _DISCOPOP_TAU
    # exp(-logits) * sigmoid(blend) as one exponential, which does not overflow
    return -nn.log_sigmoid(logits) * mx.sigmoid(-blend) + mx.exp(nn.log_sigmoid(blend) - logits)


def _sigmoid_norm(of: Ratios) -> mx.array:
    """DPO on log-ratios per token (arXiv:2411.15124)."""
    return -nn.log_sigmoid(of.beta * of.mean_difference)


LOSSES: Mapping[PreferenceLoss, Callable[[Ratios], mx.array]] = {
    "sigmoid": _sigmoid,
    "robust": _robust,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sigmoid_norm": _sigmoid_norm,
}


@dataclass(frozen=True)
class DPO(OfPairs):
    """The objective: the loss of the config on log-ratios to the model that the run began with."""

    config: FinetuneConfig
    now: datetime | None = None

    @property
    def beta(self) -> float:
        """The scale of the log-ratios."""
        return self.config.beta or (5.0 if self.config.preference_loss == "sigmoid_norm" else 0.1)

    @property
    def smoothing(self) -> float:
        """The share of pairs that are taken to be in the wrong order."""
        return self.config.label_smoothing or {"robust": 0.1, "exo_pair": 1e-3}.get(self.config.preference_loss, 0.0)

    def prepare(
        self, model: LanguageModel, dataset: Dataset[Pair], folder: Path | None, base: str
    ) -> Generator[Advanced, None, Dataset[Pair]]:
        """The pairs with their log-probabilities under the reference, where these are stored."""
        if not reference.is_stored(self.config, len(dataset.train)):
            return dataset
        parts = [dataset.train, dataset.valid]
        answers = [[each for pair in part for each in (pair.chosen, pair.rejected)] for part in parts]
        found = yield from reference.stored(model, answers, 2 * self.config.batch_size, folder, base)
        train, valid = ([replace(pair, reference=(float(values[2 * at]), float(values[2 * at + 1])))
                         for at, pair in enumerate(part)]
                        for part, values in zip(parts, found, strict=True))  # fmt: skip
        return replace(dataset, train=train, valid=valid)

    def loss(self, model: LanguageModel, batch: PairBatch) -> Loss:
        """Sum over pairs of the loss of the config.

        The metrics are those of the rewards, beta * log-ratio.
        """
        sums, tokens = log_probabilities(model, batch.rows)
        before = reference.live(model, batch.rows) if batch.reference is None else mx.array(batch.reference)
        ratios = Ratios(*halves(sums - before), *halves(tokens), self.beta, self.smoothing)
        losses = LOSSES[self.config.preference_loss](ratios)
        chosen, rejected = self.beta * ratios.chosen, self.beta * ratios.rejected
        rewards = {"chosen_reward": mx.stop_gradient(chosen).sum(), "rejected_reward": mx.stop_gradient(rejected).sum()}
        metrics = margin_metrics(chosen, rejected, self.beta * reference.ROUNDING)
        return Loss(losses.sum(), float(len(batch)), metrics | rewards)


def of(config: FinetuneConfig, parts: Parts) -> DPO:
    """The objective of a run."""
    return DPO(config, config.now)

"""PPO: clipped policy gradients, and a value head that says what a prefix is worth (arXiv:1707.06347)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macllm.errors import UsageError
from macllm.nn.loss import token_losses
from macllm.nn.protocol import LanguageModel
from macllm.train.config import FinetuneConfig
from macllm.train.contract import Loss
from macllm.train.render import TextTokenizer
from macllm.train.rollouts.experience import AnswerGroup, Columns

from .advantages import generalized, whitened
from .clm import Batch, supervised
from .parts import Parts
from .policy import PolicyBatch, PolicyObjective
from .value_head import attach_value_head, value_head


class PPO(PolicyObjective):
    """The objective. Losses are means over the tokens of a step.

    The reward of a token is -kl_coefficient * (log-probability - the reference's), and the last one's also the
    answer's reward (arXiv:2203.02155, eq. 2).
    """

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__(config, num_generations=1, num_iterations=4)

    def bound(self, model: LanguageModel, tokenizer: TextTokenizer) -> Self:
        """The objective with its rewards; the model gets a value head, which begins at 0.

        Raises UsageError for a model without hidden states.
        """
        if not model.info.hidden_size:
            raise UsageError("ppo needs the model's hidden states", cause="this class of models has none")
        attach_value_head(cast("nn.Module", model), model.info.hidden_size)
        return super().bound(model, tokenizer)

    def observed(self, model: LanguageModel, rows: Batch) -> dict[str, mx.array]:
        """The reference's log-probabilities, and the values."""
        states = supervised(model, rows)[0]
        return {**super().observed(model, rows), "values": value_head(model)(states)}

    def credited(self, groups: Sequence[AnswerGroup]) -> list[list[Columns]]:
        """Advantages by GAE, and returns: advantages plus values.

        The config says whether advantages are whitened over the rollout. An answer without a reward gets none.
        """
        config = self.config
        places = [(g, i) for g, group in enumerate(groups) for i in np.flatnonzero(group.rewarded).tolist()]
        known = [groups[g].columns[i] for g, i in places]
        rewards = [self._shaped(each, groups[g].rewards[i]) for each, (g, i) in zip(known, places, strict=True)]
        estimates = [
            generalized(each, columns["values"], config.discount, config.gae_lambda)
            for each, columns in zip(rewards, known, strict=True)
        ]
        returns = [each + columns["values"] for each, columns in zip(estimates, known, strict=True)]
        if config.whiten and estimates:
            estimates = whitened(estimates)
        credited: list[list[Columns]] = [list(group.columns) for group in groups]
        for (g, i), columns, advantages, total in zip(places, known, estimates, returns, strict=True):
            found = {"advantages": advantages.astype(np.float32), "returns": total.astype(np.float32)}
            credited[g][i] = {**columns, **found}
        return credited

    def _shaped(self, columns: Columns, reward: float) -> np.ndarray:
        """The rewards (C,) of an answer's tokens."""
        shaped = np.zeros(len(columns["old"]))
        if "reference" in columns:
            apart = columns["old"].astype(np.float64) - columns["reference"]
            shaped -= self.config.kl_coefficient * apart
        shaped[-1] += reward
        return shaped

    def token_weights(self, lengths: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """Means over the tokens of the step."""
        return np.full(len(lengths), len(whole) / max(1, whole.sum()))

    def loss(self, model: LanguageModel, batch: PolicyBatch) -> Loss:
        """Sum over answers of the clipped policy loss (eq. 7) and the weighted loss of the values (eq. 9).

        The loss of a value is half its squared distance to the return, or that of the old value changed by at most
        `value_clip` towards it, whichever is larger.
        """
        config = self.config
        states, targets, _, rows = supervised(model, batch.rows)
        log_p, values = -token_losses(model, states, targets), value_head(model)(states)
        advantages, returns, before = (batch.column(name) for name in ("advantages", "returns", "values"))
        ratio = mx.exp(log_p - batch.column("old"))
        low, high = 1 - config.clip_low, 1 + (config.clip_high or config.clip_low)
        policy = -mx.minimum(ratio * advantages, mx.clip(ratio, low, high) * advantages)
        near = mx.clip(values, before - config.value_clip, before + config.value_clip)
        value = 0.5 * mx.maximum(mx.square(values - returns), mx.square(near - returns))
        clipped = ((ratio < low) & (advantages < 0)) | ((ratio > high) & (advantages > 0))
        metrics = {
            **batch.shared_metrics(),
            "clipped": batch.mean_per_row(clipped.astype(mx.float32), rows),
            "value_loss": batch.mean_per_row(value, rows),
        }
        if config.kl_coefficient:
            metrics["kl"] = batch.mean_per_row(batch.column("old") - batch.column("reference"), rows)
        weighted = (policy + config.value_coefficient * value) * mx.array(batch.scales)
        return Loss(weighted.sum(), float(len(batch)), metrics)


def of(config: FinetuneConfig, parts: Parts) -> PPO:
    """The objective of a run."""
    return PPO(config)

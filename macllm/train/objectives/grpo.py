"""GRPO: answers compared with others to the same prompt (arXiv:2402.03300), and its variants."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from macllm.nn.protocol import LanguageModel
from macllm.train.config import FinetuneConfig
from macllm.train.contract import Loss
from macllm.train.rollouts.experience import AnswerGroup, Columns

from .advantages import group_advantages
from .clm import target_losses
from .parts import Parts
from .policy import PolicyBatch, PolicyObjective


class GRPO(PolicyObjective):
    """The objective. The loss sums over answers; how their tokens are weighted is `policy_loss`."""

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__(config, num_generations=8, num_iterations=1)

    def credited(self, groups: Sequence[AnswerGroup]) -> list[list[Columns]]:
        """Every token of an answer has the answer's advantage."""
        config = self.config
        found = group_advantages(
            [group.rewards for group in groups], config.scale_rewards, leave_one_out=config.leave_one_out
        )
        return [
            [dict(each) | {"advantages": np.full(len(completion), advantage, np.float32)}
             for completion, each, advantage in zip(group.completions, group.columns, advantages, strict=True)]
            for group, advantages in zip(groups, found, strict=True)
        ]  # fmt: skip

    def token_weights(self, lengths: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """grpo: means over answers; dr_grpo: sums over the longest length; else means over tokens.

        dr_grpo is that of arXiv:2503.20783. As gradients do not depend on the split of a step into micro-batches,
        bnpo's mean is dapo's (arXiv:2503.14476, eq. 8): that of all tokens of the step.
        """
        match self.config.policy_loss:
            case "grpo":
                return 1 / np.maximum(lengths, 1)
            case "dr_grpo":
                return np.full(len(lengths), 1 / self.config.max_completion_length)
            case _:
                return np.full(len(lengths), len(whole) / max(1, whole.sum()))

    def loss(self, model: LanguageModel, batch: PolicyBatch) -> Loss:
        """Sum over answers of weighted -min(ratio * A, clip(ratio) * A) + kl_coefficient * divergence.

        The ratio is that to the weights that drew the answer: of a token, or the geometric mean over the answer (GSPO,
        arXiv:2507.18071). The divergence is k3, exp(d) - d - 1 with d the reference's log-probability minus ours
        (eq. 4); TRL by default multiplies it by the ratio, which the paper does not. cispo (arXiv:2506.13585) weights
        log-probabilities by the ratio, at most 1 + clip_high and without a gradient.
        """
        config = self.config
        losses, _, rows = target_losses(model, batch.rows)
        log_p, advantages = -losses, batch.column("advantages")
        change = log_p - batch.column("old")
        if config.importance == "sequence":
            counts = mx.maximum(batch.sums(mx.ones(change.shape), rows), 1)
            change = (batch.sums(change, rows) / counts)[rows]
        ratio, low, high = mx.exp(change), 1 - config.clip_low, config.highest_ratio
        if config.policy_loss == "cispo":
            per_token = -mx.stop_gradient(mx.minimum(ratio, high)) * advantages * log_p
            clipped = (ratio > high) & (advantages > 0)
        else:
            per_token = -mx.minimum(ratio * advantages, mx.clip(ratio, low, high) * advantages)
            clipped = ((ratio < low) & (advantages < 0)) | ((ratio > high) & (advantages > 0))
        metrics = {**batch.shared_metrics(), "clipped": batch.mean_per_row(clipped.astype(mx.float32), rows)}
        if config.kl_coefficient:
            apart = batch.column("reference") - log_p
            divergence = mx.exp(apart) - apart - 1
            per_token = per_token + config.kl_coefficient * divergence
            metrics["kl"] = batch.mean_per_row(divergence, rows)
        return Loss((per_token * mx.array(batch.scales)).sum(), float(len(batch)), metrics)


def of(config: FinetuneConfig, parts: Parts) -> GRPO:
    """The objective of a run."""
    return GRPO(config)

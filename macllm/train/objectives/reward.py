"""Reward models: the Bradley-Terry likelihood of the better answer, with margins and centring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macllm.errors import UsageError
from macllm.generation.classify import label_logits
from macllm.generation.prompt import check_pair
from macllm.nn.protocol import LabelingModel
from macllm.text.messages import kind_of
from macllm.text.tokenizer import Tokenizer
from macllm.train.config import FinetuneConfig
from macllm.train.contract import Loss
from macllm.train.render import TextTokenizer, to_examples
from macllm.train.rows import PlainText, Preference, Row

from .labelled import LabelBatch, Labelled, collate_labelled, logits_of
from .pairs import Pair, answer, halves, margin_metrics, to_pair
from .parts import Parts


@dataclass(frozen=True)
class RankedPair(Pair):
    """A pair, and by how much the reward of the better answer is to be larger at least."""

    margin: float = field(default=0.0, kw_only=True)

    def fingerprint(self) -> bytes:
        """The fingerprints of both, and the margin."""
        return super().fingerprint() + np.float64(self.margin).tobytes()


@dataclass(frozen=True)
class RankedBatch:
    """Pairs side by side: in `rows` the N better answers, then the N worse ones; margins (N,)."""

    rows: LabelBatch
    margins: np.ndarray

    @property
    def num_target_tokens(self) -> int:
        """Number of rewards."""
        return len(self.rows.lengths)


@dataclass(frozen=True)
class Reward:
    """The objective; `centering` weighs the squared sum of the rewards of a pair (arXiv:2312.09244, 2)."""

    centering: float = 0.0
    now: datetime | None = None

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[RankedPair]:
        """The pair of a row with its margin."""
        pair = to_pair(row, tokenizer, self.now)
        margin = row.margin if isinstance(row, Preference) else 0.0
        return [RankedPair(pair.chosen, pair.rejected, margin=margin)]

    def collate(self, examples: Sequence[RankedPair], random: np.random.Generator) -> RankedBatch:
        """One batch of 2N right-padded rows; nothing in it is random."""
        both = [*(pair.chosen for pair in examples), *(pair.rejected for pair in examples)]
        rows = [Labelled(each.tokens, np.zeros(0, np.int32), each.where) for each in both]
        return RankedBatch(collate_labelled(rows), np.array([pair.margin for pair in examples], dtype=np.float32))

    def loss(self, model: LabelingModel, batch: RankedBatch) -> Loss:
        """Sum over pairs of -log sigmoid(reward(chosen) - reward(rejected) - margin), and the centring.

        Bradley-Terry (arXiv:2203.02155, eq. 1) with margins (arXiv:2307.09288, eq. 2).
        """
        rewards = logits_of(model, batch.rows.tokens, batch.rows.lengths)[:, 0]  # (2N,)
        chosen, rejected = halves(rewards)
        losses = -nn.log_sigmoid(chosen - rejected - mx.array(batch.margins))
        if self.centering:
            losses = losses + self.centering * mx.square(chosen + rejected)
        return Loss(losses.sum(), float(len(batch.margins)), margin_metrics(chosen, rejected))


def of(config: FinetuneConfig, parts: Parts) -> Reward:
    """The objective of a run."""
    return Reward(config.centering, config.now)


def reward(
    model: LabelingModel,
    tokenizer: Tokenizer,
    conversations: Sequence[str | list[dict[str, Any]]],
    *,
    batch_size: int = 32,
    now: datetime | None = None,
) -> np.ndarray:
    """The reward of each conversation by a reward model, in order: (N,) float32.

    A conversation is a list of messages that ends with the answer, or a text, and is read as in training; templates
    write the date of `now`, or of the clock. Raises UsageError for a model without a reward head and for a
    conversation without an answer, DoesNotFitError for one longer than the context.
    """
    check_pair(model, tokenizer)
    if isinstance(conversations, str):
        raise UsageError("conversations is one string", remedy="reward(model, tokenizer, [text])")
    rows = [_tokens(each, tokenizer, f"conversation {number}", now) for number, each in enumerate(conversations)]
    return token_rewards(model, rows, batch_size=batch_size)


def token_rewards(model: LabelingModel, rows: Sequence[Sequence[int]], *, batch_size: int = 32) -> np.ndarray:
    """The reward of each row of tokens by a reward model: (N,) float32. Raises as `reward`."""
    head = model.info.labels
    if head is None or head.count != 1 or head.reads == "each":
        raise UsageError(
            "this model is no reward model",
            cause="it has no head that classifies" if head is None else f"its head has {head.count} labels",
            remedy="macllm finetune --objective reward",
        )
    return np.array([logits[0] for logits in label_logits(model, rows, batch_size=batch_size)], dtype=np.float32)


def _tokens(
    conversation: str | list[dict[str, Any]], tokenizer: Tokenizer, where: str, now: datetime | None
) -> list[int]:
    if isinstance(conversation, str):
        return to_examples(PlainText(conversation, where), tokenizer, mask_prompt=False)[0].tokens.tolist()
    if not isinstance(conversation, list) or not conversation or conversation[-1].get("role") != "assistant":
        found = "without an answer at its end" if isinstance(conversation, list) else kind_of(conversation)
        raise UsageError(
            f"{where} is {found}",
            remedy='[{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]',
        )
    row = Preference(conversation[:-1], conversation[-1:], conversation[-1:], where)
    return answer(row, row.chosen, tokenizer, now).tokens.tolist()

"""Masked language modelling (arXiv:1810.04805, 3.1), masks drawn anew each time (arXiv:1907.11692)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from macllm.nn.info import ModelInfo
from macllm.nn.loss import token_losses
from macllm.train.alignment import TextTokenizer
from macllm.train.config import PretrainConfig
from macllm.train.contract import Loss
from macllm.train.rows import Row

from . import tokens
from .parts import Parts
from .texts import Text, padded, plain_text, within

_AS_MASK, _AS_RANDOM = 0.8, 0.9  # below: masked; below: another token; above: unchanged


class MaskedModel(Protocol):
    """An encoder that predicts masked tokens."""

    info: ModelInfo

    def hidden(self, tokens: mx.array, *, lengths: mx.array | None = None) -> mx.array:
        """(B, L), with rows of `lengths` (B,) padded on the right -> (B, L, D)."""
        ...

    def logits(self, hidden: mx.array) -> mx.array:
        """(N, D) -> (N, V)."""
        ...


@dataclass(frozen=True)
class MaskedBatch:
    """Corrupted and original tokens (B, L) int32, and which of them are predicted, (B, L) bool.

    Rows of `lengths` (B,) are padded on the right.
    """

    inputs: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    chosen: np.ndarray

    @property
    def num_target_tokens(self) -> int:
        """Number of predicted tokens."""
        return int(np.count_nonzero(self.chosen))


@dataclass(frozen=True)
class MaskedLM:
    """The objective: predict `ratio` of the tokens of a text, 80 % of them masked and 10 % exchanged.

    `special` tokens are neither chosen nor put in place of another. BERT's second objective, the next sentence, is left
    out: it does not help (arXiv:1907.11692, 4.2).
    """

    mask_token: int
    vocab_size: int
    special: tuple[int, ...] = ()
    ratio: float = 0.15

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[Text]:
        """The text of a row."""
        return [plain_text(row, tokenizer, self.special)]

    def collate(self, examples: Sequence[Text], random: np.random.Generator) -> MaskedBatch:
        """One batch, with tokens chosen and corrupted by `random`.

        Of n tokens of a text n * ratio are chosen, rounded up or down at random so that this is their mean, at least
        one; each is masked, exchanged or kept independently of the others.
        """
        rows = [example.tokens for example in examples]
        targets, lengths = padded(rows)
        inputs, chosen = targets.copy(), np.zeros(targets.shape, dtype=bool)
        ordinary = np.setdiff1d(np.arange(self.vocab_size, dtype=np.int32), self.special)
        for i, example in enumerate(examples):
            places = len(example.before) + np.flatnonzero(example.maskable)
            count = min(len(places), max(1, int(len(places) * self.ratio + random.random())))
            chosen[i, random.choice(places, count, replace=False)] = True
        how = random.random(int(chosen.sum()))
        others = random.choice(ordinary, len(how))
        inputs[chosen] = np.select([how < _AS_MASK, how < _AS_RANDOM], [self.mask_token, others], targets[chosen])
        return MaskedBatch(inputs, lengths, targets, chosen)

    def loss(self, model: MaskedModel, batch: MaskedBatch) -> Loss:
        """Sum of -log p(original token) over the chosen tokens, and their number."""
        count = model.info.position_count
        inputs, targets, chosen = within(count, batch.inputs, batch.targets, batch.chosen)
        hidden = model.hidden(mx.array(inputs), lengths=mx.array(batch.lengths))
        places = np.flatnonzero(chosen)
        picked = hidden.reshape(-1, hidden.shape[-1])[mx.array(places)]
        losses = token_losses(model, picked, mx.array(targets.reshape(-1)[places]))
        return Loss(losses.sum(), float(len(places)))


def of(config: PretrainConfig, parts: Parts) -> MaskedLM:
    """The objective of a run. Raises UsageError for a tokenizer without a mask token."""
    tokenizer = parts.tokenizer
    special = tuple(sorted(tokenizer.special_ids))
    return MaskedLM(tokens.mask(tokenizer), tokenizer.vocab_size, special, config.mask_ratio or 0.15)

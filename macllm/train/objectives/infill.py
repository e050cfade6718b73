"""Text infilling and sentence permutation (BART, arXiv:1910.13461, 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from macllm.train.alignment import TextTokenizer
from macllm.train.config import PretrainConfig
from macllm.train.contract import Loss
from macllm.train.rows import Row

from . import tokens
from .parts import Parts
from .seq2seq import TextToTextBatch, TextToTextModel, text_to_text_loss
from .texts import Text, plain_text


@dataclass(frozen=True)
class TextInfilling:
    """The objective: restore a text whose sentences were shuffled and whose spans are one mask token each.

    `ratio` of the tokens are in spans, with lengths from a Poisson distribution of mean `mean_length`; a span of no
    token is a mask token between two others. Sentences end at the tokens in `stops`; without any they stay in order.
    """

    mask_token: int
    stops: tuple[int, ...] = ()
    ratio: float = 0.3
    mean_length: float = 3.0

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[Text]:
        """The text of a row."""
        return [plain_text(row, tokenizer, closes=True)]

    def collate(self, examples: Sequence[Text], random: np.random.Generator) -> TextToTextBatch:
        """One batch, with order and spans drawn from `random`; the targets are the texts."""
        sources = [one.around(self._corrupted(one.inner, random)) for one in examples]
        return TextToTextBatch.of(sources, [one.tokens for one in examples])

    def loss(self, model: TextToTextModel, batch: TextToTextBatch) -> Loss:
        """Sum of -log p over the tokens of the texts, and their number."""
        return text_to_text_loss(model, batch)

    def _corrupted(self, tokens: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return infilled(permuted(tokens, self.stops, random), self.mask_token, self.ratio, self.mean_length, random)


def of(config: PretrainConfig, parts: Parts) -> TextInfilling:
    """The objective of a run. Raises UsageError for a tokenizer without a mask token."""
    stops = tokens.full_stops(parts.tokenizer) if config.permute_sentences else ()
    return TextInfilling(tokens.mask(parts.tokenizer), stops, config.mask_ratio or 0.3, config.span_length)


def permuted(tokens: np.ndarray, stops: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """The tokens (L,) with their sentences, which end at `stops`, in random order."""
    sentences = np.split(tokens, np.flatnonzero(np.isin(tokens[:-1], stops)) + 1)
    return np.concatenate([sentences[i] for i in random.permutation(len(sentences))])


def infilled(
    tokens: np.ndarray, mask_token: int, ratio: float, mean_length: float, random: np.random.Generator
) -> np.ndarray:
    """The tokens (L,) with a mask token for each span, all places of the spans equally likely.

    The last span is cut so that `ratio` of the tokens are masked, rounded at random. Of spans without a token only as
    many are kept as leave the text no longer than it was.
    """
    wanted = min(len(tokens), max(1, int(len(tokens) * ratio + random.random())))
    spans, masked, empty = list[int](), 0, 0
    while masked < wanted:
        drawn = min(int(random.poisson(mean_length)), wanted - masked)
        masked, empty = masked + drawn, empty + (drawn == 0)
        spans += [drawn] * (drawn > 0)
    spans += [0] * min(empty, masked - len(spans))
    kept = len(tokens) - masked
    order = random.permutation(np.concatenate([np.full(kept, -1), spans]).astype(np.int64))  # -1: a token that stays
    made, at = list[int](), 0
    for span in order.tolist():
        made.append(mask_token if span >= 0 else int(tokens[at]))
        at += span if span >= 0 else 1
    return np.array(made, dtype=np.int32)

"""Span corruption (T5, arXiv:1910.10683, 3.1.4): spans replaced by sentinels, and restored after them."""

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
class SpanCorruption:
    """The objective: restore `ratio` of the tokens, in spans of `mean_length` tokens on average.

    `sentinels` are the tokens that stand for spans, in the order of their use.
    """

    sentinels: tuple[int, ...]
    ratio: float = 0.15
    mean_length: float = 3.0

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[Text]:
        """The text of a row."""
        return [plain_text(row, tokenizer, closes=True)]

    def collate(self, examples: Sequence[Text], random: np.random.Generator) -> TextToTextBatch:
        """One batch, with spans drawn from `random`.

        A source is the text with a sentinel for each span; its target has the tokens of each span after its sentinel,
        and a last sentinel. A sentinel that is in the text is not used, and a text with more spans than there are
        sentinels gets fewer and longer ones.
        """
        made = [self._corrupted(example, random) for example in examples]
        return TextToTextBatch.of([source for source, _ in made], [target for _, target in made])

    def loss(self, model: TextToTextModel, batch: TextToTextBatch) -> Loss:
        """Sum of -log p over the tokens of the targets, and their number."""
        return text_to_text_loss(model, batch)

    def _corrupted(self, text: Text, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        free = [sentinel for sentinel in self.sentinels if sentinel not in text.inner]
        spans = noise_spans(len(text.inner), self.ratio, self.mean_length, len(free) - 1, random)
        source, target, at = list[int](), list[int](), 0
        for sentinel, (start, stop) in zip(free, spans, strict=False):
            source += [*text.inner[at:start].tolist(), sentinel]
            target += [sentinel, *text.inner[start:stop].tolist()]
            at = stop
        source += text.inner[at:].tolist()
        target += free[len(spans) : len(spans) + 1]
        return text.around(source), text.around(target)


def of(config: PretrainConfig, parts: Parts) -> SpanCorruption:
    """The objective of a run. Raises UsageError for a tokenizer without sentinels."""
    return SpanCorruption(tokens.sentinels(parts.tokenizer), config.mask_ratio or 0.15, config.span_length)


def noise_spans(
    length: int, ratio: float, mean_length: float, most: int, random: np.random.Generator
) -> list[tuple[int, int]]:
    """At most `most` spans [start, stop) of `length` tokens, with `ratio` of them in all.

    As in T5, spans and the stretches between them have random lengths of at least 1, a text begins with a stretch and
    ends with a span; of a single token nothing is masked.
    """
    noise = min(max(round(length * ratio), 1), length - 1)
    count = min(max(round(noise / mean_length), 1), noise, length - noise, most)
    if count < 1:
        return []
    spans, kept = _parts(noise, count, random), _parts(length - noise, count, random)
    stops = np.cumsum(spans + kept)
    return [(int(stop - span), int(stop)) for span, stop in zip(spans, stops, strict=True)]


def _parts(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` positive lengths with this sum, all such equally likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))

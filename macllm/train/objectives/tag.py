"""Classification of words, such as names: cross-entropy over the labels of their first tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from macllm.errors import DataError
from macllm.text.words import word_tokens
from macllm.train.config import FinetuneConfig
from macllm.train.render import TextTokenizer
from macllm.train.rows import Row, TaggedWords, label_name

from .labelled import Labelled, OfLabels, closing, summary
from .parts import Parts

_OUTSIDE = "O"  # the label of words outside of all spans in CoNLL's files


@dataclass(frozen=True)
class Tag(OfLabels):
    """The objective; `names` are the labels in the order of the head.

    Only the first token of a word has its label, as in BERT (arXiv:1810.04805, 5.3).
    """

    names: tuple[str, ...]

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[Labelled]:
        """The words of a row with their labels, without words that have no token."""
        if not isinstance(row, TaggedWords):
            raise DataError(
                f"{row.where} is a row of kind {row.kind}",
                cause="this objective learns the labels of words",
                remedy='rows of {"words": [...], "tags": [...]}',
            )
        if not row.words:
            raise DataError(f"{row.where} has no words")
        tokens, places = word_tokens(row.words, tokenizer)
        pairs = [(place, tag) for place, tag in zip(places, row.tags, strict=True) if place >= 0]
        labels = [self.names.index(label_name(tag)) for _, tag in pairs]
        inner = tokenizer.encode(" ".join(row.words), add_special_tokens=False)
        return [
            Labelled(
                np.array(tokens, dtype=np.int32),
                np.array(labels, dtype=np.int32),
                row.where,
                np.array([place for place, _ in pairs], dtype=np.int32),
                closing=closing(tokens, inner),
            )
        ]

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """Accuracy and F1 over words: of all labels but O if that is one, else the mean over labels."""
        outside = self.names.index(_OUTSIDE) if _OUTSIDE in self.names else None
        return summary(means, outside)


def of(config: FinetuneConfig, parts: Parts) -> Tag:
    """The objective of a run."""
    return Tag(parts.labels)

"""Classification of texts: cross-entropy over labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from macllm.errors import DataError
from macllm.train.config import FinetuneConfig
from macllm.train.render import TextTokenizer
from macllm.train.rows import PlainText, Row, label_name

from .labelled import Labelled, OfLabels, closing, summary
from .parts import Parts


@dataclass(frozen=True)
class Classify(OfLabels):
    """The objective; `names` are the labels in the order of the head."""

    names: tuple[str, ...]

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[Labelled]:
        """The text of a row with its label."""
        if not isinstance(row, PlainText) or row.label is None:
            what = "a text without a label" if isinstance(row, PlainText) else f"a row of kind {row.kind}"
            raise DataError(
                f"{row.where} is {what}",
                cause="this objective learns the labels of texts",
                remedy='rows of {"text": ..., "label": ...}',
            )
        tokens = tokenizer.encode(row.text)
        if not tokens:
            raise DataError(f"{row.where} has an empty text")
        inner = tokenizer.encode(row.text, add_special_tokens=False)
        label = np.array([self.names.index(label_name(row.label))], dtype=np.int32)
        return [Labelled(np.array(tokens, dtype=np.int32), label, row.where, closing=closing(tokens, inner))]

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """Accuracy and F1, the mean over labels."""
        return summary(means)


def of(config: FinetuneConfig, parts: Parts) -> Classify:
    """The objective of a run."""
    return Classify(parts.labels)

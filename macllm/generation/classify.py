"""Labels of texts and of words, by a model with a head that classifies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from macllm.errors import DoesNotFitError, UsageError
from macllm.families import labels
from macllm.nn.protocol import LabelingModel
from macllm.text.messages import kind_of
from macllm.text.tokenizer import Tokenizer
from macllm.text.words import word_tokens

from .limits import not_finite
from .prompt import check_pair


@dataclass(frozen=True)
class Classification:
    """The most probable label of a text or word, its probability, and that of each label."""

    label: str
    probability: float
    probabilities: dict[str, float]


def classify(
    model: LabelingModel, tokenizer: Tokenizer, texts: Sequence[str], *, batch_size: int = 32
) -> list[Classification]:
    """The label of each text, in order.

    Probabilities add up to 1, unless the config's problem_type is multi_label_classification: then each stands alone.
    Raises UsageError for a model without such a head and for an empty text, DoesNotFitError for a text longer than the
    context.
    """
    check_pair(model, tokenizer)
    names = _names(model, over_tokens=False)
    _check_list(texts, "texts", "classify(model, tokenizer, [text])")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"text {number} is {kind_of(text)}, not a string")
    logits = label_logits(model, [tokenizer.encode(text) for text in texts], batch_size=batch_size)
    return [_classification(row, names, model) for row in logits]


def tag(
    model: LabelingModel, tokenizer: Tokenizer, texts: Sequence[Sequence[str]], *, batch_size: int = 32
) -> list[list[Classification | None]]:
    """The label of each word of each text, which is a list of words; None for a word without a token.

    The first token of a word decides. Raises as `classify`.
    """
    check_pair(model, tokenizer)
    names = _names(model, over_tokens=True)
    _check_list(texts, "texts", 'tag(model, tokenizer, [["Ada", "wrote"]])')
    for number, words in enumerate(texts):
        if isinstance(words, str) or not all(isinstance(word, str) for word in words):
            raise UsageError(f"text {number} is {kind_of(words)}, not a list of words", remedy="text.split()")
    found = [word_tokens(words, tokenizer) for words in texts]
    logits = label_logits(model, [tokens for tokens, _ in found], batch_size=batch_size)
    return [
        [None if place < 0 else _classification(rows[place], names, model) for place in places]
        for rows, (_, places) in zip(logits, found, strict=True)
    ]


def label_logits(model: LabelingModel, rows: Sequence[Sequence[int]], *, batch_size: int = 32) -> list[np.ndarray]:
    """Logits of rows of tokens, in order: (C,) float32 each, or (L, C) of a head over all tokens.

    Rows of similar length share a batch, padded on the right. Raises UsageError for an empty row, DoesNotFitError for
    one longer than the context, CheckpointError for numbers that are not finite.
    """
    _check_lengths(rows, model.info.context_length)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        lengths = [len(rows[index]) for index in chosen]
        tokens = np.zeros((len(chosen), max(lengths)), dtype=np.int32)
        for at, index in enumerate(chosen):
            tokens[at, : lengths[at]] = rows[index]
        logits = np.array(model.label_logits(mx.array(tokens), mx.array(lengths)).astype(mx.float32))
        for at, index in enumerate(chosen):
            found[index] = logits[at] if logits.ndim == 2 else logits[at, : lengths[at]]
            if not np.isfinite(found[index]).all():
                raise not_finite("logits")
    return [found[index] for index in range(len(rows))]


def _names(model: LabelingModel, *, over_tokens: bool) -> tuple[str, ...]:
    """The labels of the model. Raises UsageError for one without the head for the task."""
    head = model.info.labels
    if head is None or (head.reads == "each") is not over_tokens:
        what, name = ("words", "tag") if over_tokens else ("texts", "classify")
        raise UsageError(
            f"this model has no head that classifies {what}",
            cause="its checkpoint holds none" if head is None else "its head is for the other task",
            remedy=f"macllm finetune --objective {name}",
        )
    return labels.names(model.info.config)


def _classification(logits: np.ndarray, names: Sequence[str], model: LabelingModel) -> Classification:
    exact = logits.astype(np.float64)
    if model.info.config.get("problem_type") == "multi_label_classification":
        shares = 1 / (1 + np.exp(-exact))
    else:
        powers = np.exp(exact - exact.max())
        shares = powers / powers.sum()
    best = int(shares.argmax())
    return Classification(names[best], float(shares[best]), dict(zip(names, shares.tolist(), strict=True)))


def _check_list(texts: object, name: str, remedy: str) -> None:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UsageError(f"{name} is {kind_of(texts)}, not a list", remedy=remedy)


def _check_lengths(rows: Sequence[Sequence[int]], limit: int | None) -> None:
    for number, row in enumerate(rows):
        if not len(row):
            raise UsageError(f"text {number} is empty")
        if limit is not None and len(row) > limit:
            raise DoesNotFitError(
                f"text {number} has {len(row)} tokens; the model's context holds {limit}",
                remedy="its parts one by one, or a model with a longer context",
            )

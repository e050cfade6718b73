"""Cross-entropy over labels, of whole texts or of some of their tokens, and its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import mlx.core as mx
import numpy as np

from macllm.nn.protocol import LabelingModel
from macllm.train.contract import Loss

_PAD_TO = 8  # few distinct shapes let MLX reuse its buffers
_MOST_COUNTED = 100  # labels with counts of their own, for F1
_COUNTS = ("right", "predicted", "actual")


@dataclass(frozen=True)
class Labelled:
    """The tokens (L,) int32 of a text and its label, or the labels of the tokens at `places`.

    Labels and places are (N,) int32. `closing` counts the tokens at the end that the model expects after any text.
    """

    tokens: np.ndarray
    labels: np.ndarray
    where: str
    places: np.ndarray | None = None
    closing: int = 0

    @property
    def sequences(self) -> tuple[np.ndarray, ...]:
        """The tokens alone."""
        return (self.tokens,)

    @property
    def splittable(self) -> bool:
        """False: the label is that of the whole text, and a word's may depend on it."""
        return False

    @property
    def num_target_tokens(self) -> int:
        """Number of labels."""
        return len(self.labels)

    @property
    def ends(self) -> bool:
        """True: no end of an answer is learned."""
        return True

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, start: int, stop: int) -> Self:
        """The example of the tokens from `start` to `stop`, the last of them the closing ones."""
        if stop >= len(self.tokens) or stop - start <= self.closing:
            closing, inner = self.tokens[:0], self.tokens[start:stop]
        else:
            closing, inner = self.tokens[len(self) - self.closing :], self.tokens[start : stop - self.closing]
        tokens = np.concatenate([inner, closing])
        if self.places is None:
            return replace(self, tokens=tokens)
        kept = (self.places >= start) & (self.places < start + len(inner))
        return replace(self, tokens=tokens, labels=self.labels[kept], places=self.places[kept] - start)

    def fingerprint(self) -> bytes:
        """Length, tokens, labels and places."""
        places = b"" if self.places is None else self.places.tobytes()
        return len(self).to_bytes(8, "little") + self.tokens.tobytes() + self.labels.tobytes() + places


@dataclass(frozen=True)
class LabelBatch:
    """Tokens (B, L) int32, right-padded to `lengths` (B,); labels (N,) of `rows` or of `places` in them."""

    tokens: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    places: np.ndarray | None

    @property
    def num_target_tokens(self) -> int:
        """Number of labels."""
        return len(self.labels)


def collate_labelled(examples: Sequence[Labelled]) -> LabelBatch:
    """One right-padded batch."""
    lengths = np.array([len(each) for each in examples], dtype=np.int32)
    tokens = np.zeros((len(examples), -(-int(lengths.max()) // _PAD_TO) * _PAD_TO), dtype=np.int32)
    for row, each in zip(tokens, examples, strict=True):
        row[: len(each)] = each.tokens
    places = [each.places for each in examples if each.places is not None]
    return LabelBatch(
        tokens,
        lengths,
        np.concatenate([each.labels for each in examples]).astype(np.int32),
        np.repeat(np.arange(len(examples), dtype=np.int32), [len(each.labels) for each in examples]),
        np.concatenate(places).astype(np.int32) if places else None,
    )


class OfLabels:
    """Batches and loss of objectives that learn labels."""

    def collate(self, examples: Sequence[Labelled], random: np.random.Generator) -> LabelBatch:
        """One right-padded batch; nothing in it is random."""
        return collate_labelled(examples)

    def loss(self, model: LabelingModel, batch: LabelBatch) -> Loss:
        """Sum over labels of -log p(label), and their number."""
        return label_loss(model, batch)


def closing(whole: Sequence[int], inner: Sequence[int]) -> int:
    """Number of tokens that follow those of the text itself; 0 if its own are not found."""
    starts = range(len(whole) - len(inner) + 1)
    at = next((start for start in starts if whole[start : start + len(inner)] == inner), None)
    return 0 if at is None or not inner else len(whole) - at - len(inner)


def logits_of(model: LabelingModel, tokens: np.ndarray, lengths: np.ndarray) -> mx.array:
    """Logits of right-padded rows, (B, C) or (B, L, C) float32; no padding beyond the model's positions."""
    tokens = tokens[:, : model.info.position_count]
    return model.label_logits(mx.array(tokens), mx.array(lengths)).astype(mx.float32)


def label_loss(model: LabelingModel, batch: LabelBatch) -> Loss:
    """Sum over labels of -log p(label), and their number."""
    logits = logits_of(model, batch.tokens, batch.lengths)
    if batch.places is not None:
        logits = logits[mx.array(batch.rows), mx.array(batch.places)]  # (N, C)
    labels = mx.array(batch.labels)
    chosen = mx.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    losses = mx.logsumexp(logits, axis=-1) - chosen
    return Loss(losses.sum(), float(len(batch.labels)), _counts(mx.stop_gradient(logits), labels))


def _counts(logits: mx.array, labels: mx.array) -> dict[str, mx.array]:
    """Numbers of right predictions, and by label those of right ones, of predictions and occurrences."""
    predicted = logits.argmax(axis=-1)
    right = predicted == labels
    found = {"accuracy": right.sum().astype(mx.float32)}
    if logits.shape[-1] <= _MOST_COUNTED:
        each = mx.arange(logits.shape[-1])[:, None]
        groups = ((labels == each) & right, predicted == each, labels == each)
        for name, group in zip(_COUNTS, groups, strict=True):
            totals = group.sum(axis=-1).astype(mx.float32)
            found |= {f"{name} {label}": totals[label] for label in range(logits.shape[-1])}
    return found


def summary(means: Mapping[str, float], outside: int | None = None) -> dict[str, float]:
    """Accuracy and F1 from the means of `label_loss`; without counts of labels, accuracy alone.

    F1 is the mean over labels that occur or are predicted (macro). With a label `outside`, that of words outside of
    what is searched for, it is F1 over all words with other labels (micro).
    """
    numbers = [int(name.split()[1]) for name in means if name.startswith("actual ")]
    counts = {n: [means[f"{name} {n}"] for name in _COUNTS] for n in numbers if n != outside}
    if outside is not None and counts:
        counts = {0: [sum(each) for each in zip(*counts.values(), strict=True)]}
    scores = [2 * right / (predicted + actual) for right, predicted, actual in counts.values() if predicted + actual]
    found = {name: value for name, value in means.items() if name.split()[0] not in _COUNTS}
    return found | ({"f1": sum(scores) / len(scores)} if scores else {"f1": 0.0} if counts else {})

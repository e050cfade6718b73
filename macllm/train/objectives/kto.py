"""Kahneman-Tversky optimization: single answers, each with a verdict (arXiv:2402.01306)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Self, cast

import mlx.core as mx
import numpy as np

from macllm.errors import DataError
from macllm.nn.protocol import LanguageModel
from macllm.train.config import FinetuneConfig
from macllm.train.contract import Loss
from macllm.train.data import Dataset
from macllm.train.events import Advanced
from macllm.train.inference import evaluating
from macllm.train.render import Example, TextTokenizer
from macllm.train.rows import Preference, Row, UnpairedPreference

from . import reference
from .clm import Batch, collate
from .mismatch import joined, partners
from .pairs import answer, log_probabilities, signs
from .parts import Parts


@dataclass(frozen=True)
class Judged:
    """An answer after its prompt, with the loss on the answer, and the verdict on it.

    `mismatched` is the prompt with the answer to another one. `reference` are the log-probabilities of both answers
    under the reference, in nats, if they are known.
    """

    answer: Example
    is_good: bool
    mismatched: Example | None = None
    reference: tuple[float, float] | None = None

    @property
    def where(self) -> str:
        """File and line of the row."""
        return self.answer.where

    @property
    def sequences(self) -> tuple[np.ndarray, ...]:
        """The tokens of both."""
        return (self.answer.tokens, *(() if self.mismatched is None else (self.mismatched.tokens,)))

    @property
    def splittable(self) -> bool:
        """False: a piece of an answer is not good or bad."""
        return False

    @property
    def num_target_tokens(self) -> int:
        """Number of supervised tokens of the answer."""
        return self.answer.num_target_tokens

    @property
    def ends(self) -> bool:
        """True if the end of the answer is supervised."""
        return self.answer.ends

    def __len__(self) -> int:
        return max(map(len, self.sequences))

    def cut(self, start: int, stop: int) -> Self:
        """The answer of the tokens from `start` to `stop`, without a mismatched one."""
        return type(self)(self.answer.cut(start, stop), self.is_good)

    def fingerprint(self) -> bytes:
        """The verdict and the fingerprints of both."""
        mismatched = b"" if self.mismatched is None else self.mismatched.fingerprint()
        return bytes([self.is_good]) + self.answer.fingerprint() + mismatched


@dataclass(frozen=True)
class JudgedBatch:
    """Answers side by side, `is_good` (N,) bool, and as many mismatched ones.

    `reference` are the log-probabilities of both under the reference, (2, N) float32, if they are known.
    `divergence` is the estimate of the KL divergence in the step, in nats, once it is measured.
    """

    rows: Batch
    is_good: np.ndarray
    mismatched: Batch
    reference: np.ndarray | None = None
    divergence: float | None = None

    @property
    def num_target_tokens(self) -> int:
        """Number of supervised tokens."""
        return self.rows.num_target_tokens

    def __len__(self) -> int:
        return len(self.is_good)


@dataclass(frozen=True)
class KTO:
    """The objective, between the trained model and the one that the run began with.

    The KL divergence of a step is estimated on one mismatched answer for each of its examples: the answer to another
    prompt, chosen once for the whole run. It is the mean over all micro-batches of the step, so that the split of the
    step does not matter (up to rounding), and a micro-batch may have one example. TRL takes it over each micro-batch.
    In an evaluation it is the mean over all of its rows.
    """

    config: FinetuneConfig
    now: datetime | None = None

    @property
    def beta(self) -> float:
        """The scale of the log-ratios."""
        return self.config.beta or 0.1

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[Judged]:
        """The answer of a row, or both of a pair: the better one is good, the worse one bad."""
        match row:
            case UnpairedPreference():
                answers = [(row.completion, row.label)]
            case Preference():
                answers = [(row.chosen, True), (row.rejected, False)]
            case _:
                raise DataError(
                    f"{row.where} is a row of kind {row.kind}",
                    cause="this objective learns from answers with a verdict",
                    remedy='rows of {"prompt": ..., "completion": ..., "label": true}, or pairs of answers',
                )
        return [Judged(answer(row, text, tokenizer, self.now), is_good) for text, is_good in answers]

    def prepare(
        self, model: LanguageModel, dataset: Dataset[Judged], folder: Path | None, base: str
    ) -> Generator[Advanced, None, Dataset[Judged]]:
        """The answers with mismatched ones, and with stored log-probabilities under the reference.

        Raises DataError for rows that all have the same prompt.
        """
        train, valid = _mismatched(dataset.train, dataset.valid, self.config.seed)
        dataset = replace(dataset, train=train, valid=valid)
        if not reference.is_stored(self.config, len(train)):
            return dataset
        parts = [dataset.train, dataset.valid]
        groups = [_both(part) for part in parts]
        found = yield from reference.stored(model, groups, 2 * self.config.batch_size, folder, base)
        train, valid = ([replace(one, reference=(float(values[at]), float(values[len(part) + at])))
                         for at, one in enumerate(part)]
                        for part, values in zip(parts, found, strict=True))  # fmt: skip
        return replace(dataset, train=train, valid=valid)

    def collate(self, examples: Sequence[Judged], random: np.random.Generator) -> JudgedBatch:
        """One batch; nothing in it is random. Raises ValueError for examples that are not prepared."""
        answers = _both(examples)
        known = [one.reference for one in examples if one.reference is not None]
        return JudgedBatch(
            collate(answers[: len(examples)]),
            np.array([one.is_good for one in examples]),
            collate(answers[len(examples) :]),
            np.array(known, dtype=np.float32).T if len(known) == len(examples) else None,
        )

    def measured(
        self, model: LanguageModel, batches: Sequence[JudgedBatch], step: Sequence[JudgedBatch]
    ) -> list[JudgedBatch]:
        """The batches with the KL divergence of the step from the reference, at least 0 (section 4.1)."""
        total = 0.0
        for batch in step:
            with evaluating(model):
                sums = log_probabilities(model, batch.mismatched)[0]
            known = batch.reference
            before = reference.live(model, batch.mismatched) if known is None else mx.array(known[1])
            total += cast("float", (sums - before).sum().item())
        divergence = max(0.0, total / max(1, sum(map(len, step))))
        return [replace(batch, divergence=divergence) for batch in batches]

    def loss(self, model: LanguageModel, batch: JudgedBatch) -> Loss:
        """Sum over answers of weight * (1 - sigmoid(margin)) (section 4.2).

        The margin of a good answer is beta * (log-ratio - divergence), that of a bad one its negative. The metrics are
        the share of positive margins, their mean, and the divergence. Raises ValueError for a batch not measured.
        """
        if batch.divergence is None:
            raise ValueError("the divergence of the batch is not measured")
        sums, _ = log_probabilities(model, batch.rows)
        before = reference.live(model, batch.rows) if batch.reference is None else mx.array(batch.reference[0])
        is_good = mx.array(batch.is_good)
        margins = mx.where(is_good, 1.0, -1.0) * self.beta * (sums - before - batch.divergence)
        weights = mx.where(is_good, self.config.desirable_weight, self.config.undesirable_weight)
        told = mx.stop_gradient(margins)
        metrics = {
            "accuracy": signs(told, self.beta * reference.ROUNDING).sum(),
            "margin": told.sum(),
            "divergence": mx.array(batch.divergence * len(batch)),
        }
        return Loss((weights * mx.sigmoid(-margins)).sum(), float(len(batch)), metrics)


def of(config: FinetuneConfig, parts: Parts) -> KTO:
    """The objective of a run."""
    return KTO(config, config.now)


def _mismatched(train: Sequence[Judged], valid: Sequence[Judged], seed: int) -> tuple[list[Judged], list[Judged]]:
    """The examples, each with the answer to another prompt; training rows have those of training rows."""
    made: list[list[Judged]] = []
    for own, pool in ((train, train), (valid, [*valid, *train])):
        longest = max(map(len, pool), default=0)
        found = partners([one.answer for one in pool], seed) if own else []
        pairs = zip(own, found, strict=False)
        made.append([replace(one, mismatched=joined(one.answer, pool[at].answer, longest)) for one, at in pairs])
    return made[0], made[1]


def _both(examples: Sequence[Judged]) -> list[Example]:
    """The answers of examples, and then their mismatched ones."""
    mismatched = [one.mismatched for one in examples if one.mismatched is not None]
    if len(mismatched) != len(examples):
        raise ValueError("the examples have no mismatched answers")
    return [*(one.answer for one in examples), *mismatched]

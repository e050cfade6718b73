"""Distillation: a student learns the next-token distributions of a teacher.

Hinton et al. 2015 (arXiv:1503.02531); GKD (arXiv:2306.13649).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import mlx.core as mx
import numpy as np

from macllm.nn.loss import chunked_losses
from macllm.nn.protocol import LanguageModel
from macllm.ops.cross_entropy import cross_entropy
from macllm.train.config import Divergence, FinetuneConfig, OtherTokens
from macllm.train.contract import Loss
from macllm.train.data import Dataset
from macllm.train.events import Advanced
from macllm.train.render import Example, TextTokenizer, to_examples
from macllm.train.rows import Row

from .clm import Batch, collate, supervised
from .divergence import Likeliest, compared, divergence, likeliest, log_softmax
from .parts import Parts
from .teacher import Taught, Teacher, taught


@dataclass(frozen=True)
class DistilBatch:
    """Rows, and the teacher's likeliest tokens at their N targets; None for a teacher beside the student."""

    rows: Batch
    known: Likeliest | None = None

    @property
    def num_target_tokens(self) -> int:
        """Number of supervised tokens."""
        return self.rows.num_target_tokens


@dataclass(frozen=True)
class Distil:
    """The objective: divergence from the teacher, and cross-entropy of the rows.

    The loss is (1 - data_weight) * temperature^2 * divergence + data_weight * cross-entropy. The square keeps the size
    of gradients at any temperature (arXiv:1503.02531, section 2); TRL's GKD leaves it out. `top` of the teacher's
    tokens are compared, or all with 0. With `first`, the teacher runs before training.
    """

    teacher: Teacher = field(repr=False)
    kind: Divergence = field(default="forward", repr=False)
    jsd_weight: float = field(default=0.5, repr=False)
    temperature: float = field(default=1.0, repr=False)
    data_weight: float = field(default=0.1, repr=False)
    top: int = field(default=0, repr=False)
    others: OtherTokens = field(default="bucket", repr=False)
    first: bool = field(default=False, repr=False)
    mask_prompt: bool = True
    now: datetime | None = None

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[Example]:
        """The tokens of a row: one example, or one per turn if the template rewrites old turns."""
        return to_examples(row, tokenizer, self.mask_prompt, self.now)

    def prepare(
        self, model: LanguageModel, dataset: Dataset[Example], folder: Path | None, base: str
    ) -> Generator[Advanced, None, Dataset[Example]]:
        """The dataset with the teacher's likeliest tokens, kept in `folder`, or with the teacher's name alone.

        The student's weights do not matter.
        """
        self.teacher.check_lengths([*dataset.train, *dataset.valid])
        if not self.first or folder is None:
            return self.teacher.marked(dataset)
        facts = [self.temperature, self.top, self.teacher.width(model)]
        dataset = yield from taught(self.teacher, dataset, folder, facts, lambda rows: self._asked(model, rows))
        self.teacher.release()
        return dataset

    def collate(self, examples: Sequence[Example], random: np.random.Generator) -> DistilBatch:
        """One right-padded batch; nothing in it is random."""
        stored = [each.known for each in examples if isinstance(each, Taught) and each.known is not None]
        parts = zip(*(each.read() for each in stored), strict=True)
        known = Likeliest(*(mx.array(np.concatenate(part)) for part in parts)) if stored else None
        return DistilBatch(collate(examples), known)

    def loss(self, model: LanguageModel, batch: DistilBatch) -> Loss:
        """Weighted sum of the loss over targets, and the sum of the weights."""
        hidden, targets, weights, _ = supervised(model, batch.rows)
        known, width = batch.known, self.teacher.width(model)
        asked = self.teacher.hidden(batch.rows) if known is None else None

        def some(logits: mx.array, rows: slice) -> mx.array:
            log_q = log_softmax(logits[:, :width], self.temperature)
            if known is not None:
                log_p, log_q = compared(known.rows(rows), log_q, self.others)
            else:
                assert asked is not None
                log_p = log_softmax(self.teacher.logits(asked[rows])[:, :width], self.temperature)
                if self.top:
                    log_p, log_q = compared(likeliest(log_p, self.top), log_q, self.others)
            softened = divergence(log_p, log_q, self.kind, self.jsd_weight)
            hard = cross_entropy(logits, targets[rows])
            total = (1 - self.data_weight) * self.temperature**2 * softened + self.data_weight * hard
            return mx.stack([total, mx.stop_gradient(hard), mx.stop_gradient(softened)], axis=-1)

        losses = chunked_losses(model, hidden, some, metrics=2, beside=width if known is None else self.top)
        total, hard, softened = (losses * weights[:, None]).sum(axis=0)
        metrics = {"cross_entropy": mx.stop_gradient(hard), "divergence": mx.stop_gradient(softened)}
        return Loss(total, float(batch.rows.weights.sum(dtype=np.float64)), metrics)

    def _asked(self, model: LanguageModel, rows: Batch) -> Likeliest:
        """The teacher's likeliest tokens of every target, a chunk of rows at a time."""
        hidden, width = self.teacher.hidden(rows), self.teacher.width(model)
        found: list[Likeliest] = []
        for start in range(0, len(hidden), 64):
            logits = self.teacher.logits(hidden[start : start + 64])[:, :width]
            found.append(likeliest(log_softmax(logits, self.temperature), self.top))
            mx.eval(found[-1])
        return Likeliest(*(mx.concatenate(list(parts)) for parts in zip(*found, strict=True)))


def of(config: FinetuneConfig, parts: Parts) -> Distil:
    """The objective of a run. Raises UsageError for a teacher with another vocabulary than the student."""
    return Distil(
        Teacher.of(config.teacher, config.model),
        config.divergence,
        config.jsd_weight,
        config.distil_temperature,
        config.data_weight,
        config.teacher_top,
        config.teacher_others,
        config.teacher_first,
        config.mask_prompt,
        config.now,
    )

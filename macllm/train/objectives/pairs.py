"""Pairs of a better and a worse answer to the same prompt, and the log-probabilities of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Self

import mlx.core as mx
import numpy as np

from macllm.errors import DataError
from macllm.nn.protocol import LanguageModel
from macllm.train.render import Example, TextTokenizer, to_examples
from macllm.train.rows import Messages, Preference, PromptCompletion, Row, UnpairedPreference

from .clm import Batch, collate, target_losses


@dataclass(frozen=True)
class Pair:
    """The better and the worse answer, each after its prompt, with the loss on the answer.

    `reference` are the log-probabilities of both under the reference, in nats, if they are known.
    """

    chosen: Example
    rejected: Example
    reference: tuple[float, float] | None = field(default=None, kw_only=True)

    @property
    def where(self) -> str:
        """File and line of the row."""
        return self.chosen.where

    @property
    def sequences(self) -> tuple[np.ndarray, ...]:
        """The tokens of both."""
        return self.chosen.tokens, self.rejected.tokens

    @property
    def splittable(self) -> bool:
        """False: a piece of an answer is not better or worse."""
        return False

    @property
    def num_target_tokens(self) -> int:
        """Number of supervised tokens of both; 0 if one of them has none."""
        both = self.chosen.num_target_tokens, self.rejected.num_target_tokens
        return sum(both) if all(both) else 0

    @property
    def ends(self) -> bool:
        """True if the end of both answers is supervised."""
        return self.chosen.ends and self.rejected.ends

    def __len__(self) -> int:
        return max(len(self.chosen), len(self.rejected))

    def cut(self, start: int, stop: int) -> Self:
        """The pair of the tokens from `start` to `stop` of each."""
        return replace(
            self, chosen=self.chosen.cut(start, stop), rejected=self.rejected.cut(start, stop), reference=None
        )

    def fingerprint(self) -> bytes:
        """The fingerprints of both."""
        return self.chosen.fingerprint() + self.rejected.fingerprint()


def to_pair(row: Row, tokenizer: TextTokenizer, now: datetime | None) -> Pair:
    """The pair of a row with two answers. Raises DataError for another row."""
    if not isinstance(row, Preference):
        raise DataError(
            f"{row.where} is a row of kind {row.kind}",
            cause="this objective compares two answers to the same prompt",
            remedy='rows of {"prompt": ..., "chosen": ..., "rejected": ...}',
        )
    return Pair(answer(row, row.chosen, tokenizer, now), answer(row, row.rejected, tokenizer, now))


def answer(
    row: Preference | UnpairedPreference, completion: str | Messages, tokenizer: TextTokenizer, now: datetime | None
) -> Example:
    """The prompt of a row with one of its completions, and the loss on the completion."""
    asked = PromptCompletion(row.prompt, completion, row.where, row.tools, row.variables)
    made = to_examples(asked, tokenizer, mask_prompt=True, now=now)
    if len(made) != 1:
        raise DataError(
            f"{row.where} has a completion of several answers",
            cause="the chat template rewrites the earlier ones, so that they are no single sequence",
            remedy="the earlier ones in the prompt",
        )
    return made[0]


@dataclass(frozen=True)
class PairBatch:
    """Pairs side by side: the rows of `rows` are the N better answers, then the N worse ones.

    `reference` are the log-probabilities of these rows under the reference, (2N,) float32, if they are known.
    """

    rows: Batch
    reference: np.ndarray | None = None

    @property
    def num_target_tokens(self) -> int:
        """Number of supervised tokens."""
        return self.rows.num_target_tokens

    def __len__(self) -> int:
        return len(self.rows.inputs) // 2


def collate_pairs(pairs: Sequence[Pair]) -> PairBatch:
    """One batch of 2N right-padded rows."""
    known = [pair.reference for pair in pairs if pair.reference is not None]
    reference = np.array(known, dtype=np.float32).T.reshape(-1) if len(known) == len(pairs) else None
    return PairBatch(collate([*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]), reference)


class OfPairs:
    """Examples and batches of objectives that learn from pairs; templates write the date of `now`."""

    now: datetime | None

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[Pair]:
        """The pair of a row."""
        return [to_pair(row, tokenizer, self.now)]

    def collate(self, examples: Sequence[Pair], random: np.random.Generator) -> PairBatch:
        """One batch; nothing in it is random."""
        return collate_pairs(examples)


def log_probabilities(model: LanguageModel, batch: Batch) -> tuple[mx.array, mx.array]:
    """Summed log-probability of each row's supervised tokens, and their number, both (B,) float32."""
    losses, weights, rows = target_losses(model, batch)
    counts = np.count_nonzero(batch.weights, axis=1)
    # A row's losses side by side: their sum rounds less than one after another.
    places = np.concatenate([np.arange(count) for count in counts]).astype(np.int32)
    beside = mx.zeros((len(counts), max(1, int(counts.max(initial=0)))))
    sums = beside.at[rows, mx.array(places)].add(-losses * weights).sum(axis=1)
    return sums, mx.array(batch.weights.sum(axis=1))


def halves(values: mx.array) -> tuple[mx.array, mx.array]:
    """The values of better and of worse answers: (2N,) -> (N,), (N,)."""
    count = len(values) // 2
    return values[:count], values[count:]


def margin_metrics(better: mx.array, worse: mx.array, tie: float = 0.0) -> dict[str, mx.array]:
    """Sums of pairs ordered rightly and of margins, from scores of both answers (N,).

    Scores that are at most `tie` apart are ordered half rightly.
    """
    margins = mx.stop_gradient(better - worse)
    return {"accuracy": signs(margins, tie).sum(), "margin": margins.sum()}


def signs(margins: mx.array, tie: float) -> mx.array:
    """1 for margins above `tie`, 0 for those below its negative, 0.5 between: (N,) float32."""
    return (margins > tie) + 0.5 * (mx.abs(margins) <= tie)

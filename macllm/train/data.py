"""Training batches: rows are tokenized once, truncated or split with counts, and right-padded."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from macllm.errors import DataError

from . import rows
from .config import LongRows, TrainConfig
from .events import Advanced
from .order import Order
from .render import Example, TextTokenizer, to_examples

# Few distinct shapes let MLX reuse its buffers, at a cost of at most seven padding positions.
_PAD_TO = 8


@dataclass(frozen=True)
class Batch:
    """Inputs and targets (B, L) int32, right-padded, and the loss weight of each target, (B, L) float32."""

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    @property
    def num_target_tokens(self) -> int:
        """Number of supervised tokens."""
        return int(np.count_nonzero(self.weights))


@dataclass(frozen=True)
class Counts:
    """Statistics of a file's rows: kept, truncated, split, dropped, unsupervised."""

    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    truncated_rows: int = 0
    lost_tokens: int = 0
    split_rows: int = 0
    dropped_rows: int = 0
    unsupervised_rows: int = 0
    expanded_rows: int = 0


@dataclass(frozen=True)
class Dataset:
    """Training examples, validation examples, and the statistics of the training rows."""

    train: list[Example]
    valid: list[Example]
    counts: Counts

    def fingerprint(self) -> str:
        """SHA-256 over every token and loss mask; equal for the same data only."""
        digest = hashlib.sha256()
        for part in (self.train, self.valid):
            digest.update(len(part).to_bytes(8, "little"))
            for example in part:
                digest.update(len(example).to_bytes(8, "little"))
                digest.update(example.tokens.tobytes())
                digest.update(example.loss_mask.tobytes())
        return digest.hexdigest()


def load(config: TrainConfig, tokenizer: TextTokenizer, context_length: int | None = None) -> Dataset:
    """The dataset of `loading`, without its progress."""
    work = loading(config, tokenizer, context_length)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def loading(
    config: TrainConfig, tokenizer: TextTokenizer, context_length: int | None = None
) -> Generator[Advanced, None, Dataset]:
    """Tokenize the rows that `config` names, yielding progress; returns the dataset.

    An example has at most `max_seq_length` tokens, and at most `context_length` if that is not None. Raises DataError
    if no example has a supervised token.
    """
    train_path, valid_path = rows.find_files(config.data, config.valid)
    train_rows = rows.read(train_path)
    valid_rows = rows.read(valid_path) if valid_path else []
    if not valid_rows and config.valid_fraction > 0:
        train_rows, valid_rows = _hold_out(train_rows, config.valid_fraction, config.seed, train_path)
    limit = min(config.max_seq_length, context_length or config.max_seq_length)
    total = len(train_rows) + len(valid_rows)
    made: list[tuple[list[Example], Counts]] = []
    for group, before in ((train_rows, 0), (valid_rows, len(train_rows))):
        encoding = _Encoding(tokenizer, config, limit)
        for number, row in enumerate(group):
            yield Advanced("reading", before + number, total)
            encoding.add(row)
        made.append((encoding.kept, encoding.counted()))
    (train, counts), (valid, _) = made
    if not train:
        raise DataError(
            f"{train_path} has no supervised tokens",
            cause=f"of {counts.rows} rows {counts.unsupervised_rows} have no supervised tokens, "
            f"{counts.dropped_rows} are longer than {limit} tokens",
            remedy="assistant turns or completions in the rows, or a larger max_seq_length",
        )
    return Dataset(train, valid, counts)


def _hold_out(
    all_rows: list[rows.Row], fraction: float, seed: int, path: Path
) -> tuple[list[rows.Row], list[rows.Row]]:
    count = max(1, round(fraction * len(all_rows)))
    if count >= len(all_rows):
        raise DataError(f"{path} has too few rows to hold out some for evaluation", cause=f"it has {len(all_rows)}")
    random = np.random.Generator(np.random.Philox(key=np.array([seed, 2**63], dtype=np.uint64)))
    held = set(map(int, random.permutation(len(all_rows))[:count]))
    return (
        [row for i, row in enumerate(all_rows) if i not in held],
        [row for i, row in enumerate(all_rows) if i in held],
    )


class _Encoding:
    """Collects the examples of rows, none longer than `limit` tokens, and counts the rows."""

    def __init__(self, tokenizer: TextTokenizer, config: TrainConfig, limit: int) -> None:
        self._tokenizer, self._config, self._limit = tokenizer, config, limit
        self.kept: list[Example] = []
        self._counts = Counts()

    def add(self, row: rows.Row) -> None:
        """Tokenize a row. Raises DataError for an invalid row, or for a too long one with long_rows="error"."""
        made = to_examples(row, self._tokenizer, self._config.mask_prompt)
        counts = replace(
            self._counts,
            rows=self._counts.rows + 1,
            expanded_rows=self._counts.expanded_rows + (len(made) > 1),
        )
        for example in made:
            fitting, counts = _fit(example, self._config.long_rows, self._limit, counts)
            supervised = [e for e in fitting if e.loss_mask.any()]
            if not supervised:
                counts = replace(counts, unsupervised_rows=counts.unsupervised_rows + bool(fitting))
            self.kept += supervised
        self._counts = counts

    def counted(self) -> Counts:
        """The counts, with the number of tokens in the kept examples."""
        tokens, supervised = sum(map(len, self.kept)), sum(int(e.loss_mask.sum()) for e in self.kept)
        return replace(self._counts, tokens=tokens, supervised_tokens=supervised)


def _fit(example: Example, long_rows: LongRows, most: int, counts: Counts) -> tuple[list[Example], Counts]:
    if len(example) <= most:
        return [example], counts
    if long_rows == "error":
        raise DataError(
            f"{example.where} has {len(example)} tokens, more than {most}",
            remedy="--max-seq-length, or --set long_rows=truncate|split|drop",
        )
    if long_rows == "drop":
        return [], replace(counts, dropped_rows=counts.dropped_rows + 1)
    if long_rows == "split" and example.splittable and most > 1:
        # Neighbouring pieces share one token, so that every token but the first is predicted once.
        starts = range(0, len(example) - 1, most - 1)
        pieces = [_cut(example, start, start + most) for start in starts]
        return pieces, replace(counts, split_rows=counts.split_rows + 1)
    lost = counts.lost_tokens + len(example) - most
    return [_cut(example, 0, most)], replace(counts, truncated_rows=counts.truncated_rows + 1, lost_tokens=lost)


def _cut(example: Example, start: int, stop: int) -> Example:
    loss_mask = example.loss_mask[start:stop].copy()
    loss_mask[:1] = False
    return replace(example, tokens=example.tokens[start:stop], loss_mask=loss_mask)


def collate(examples: Sequence[Example]) -> Batch:
    """One right-padded batch. Padding is token 0 with weight 0."""
    longest = max(2, *map(len, examples)) - 1
    length = -(-longest // _PAD_TO) * _PAD_TO
    inputs = np.zeros((len(examples), length), dtype=np.int32)
    targets, weights = np.zeros_like(inputs), np.zeros(inputs.shape, dtype=np.float32)
    for i, example in enumerate(examples):
        n = len(example) - 1
        inputs[i, :n], targets[i, :n] = example.tokens[:-1], example.tokens[1:]
        weights[i, :n] = example.loss_mask[1:]
    return Batch(inputs, targets, weights)


class Batches:
    """Random access to the batches of a run by number."""

    def __init__(self, examples: list[Example], batch_size: int, seed: int) -> None:
        self._examples = examples
        self._order = Order([len(e) for e in examples], batch_size, seed)
        self.per_epoch = self._order.batches_per_epoch

    def batch(self, number: int) -> Batch:
        """Batch `number` of the run, from 0."""
        return collate([self._examples[i] for i in self._order.rows(number)])


def in_order(examples: list[Example], batch_size: int) -> list[Sequence[Example]]:
    """Batches for evaluation: every example once, sorted by length."""
    by_length = sorted(examples, key=len)
    return [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]

"""Training data: the rows of files as examples, truncated or split with counts."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, Protocol, runtime_checkable

import numpy as np

from macllm.errors import DataError, UsageError

from . import rows
from .config import TrainConfig
from .contract import AnyExample, E, M_contra, Objective
from .encoded import EncodedRow, Encoder
from .encoding import Encoding
from .events import Advanced, Counts
from .render import TextTokenizer


@dataclass(frozen=True)
class Dataset(Generic[E]):
    """Training examples, validation examples, and the statistics of their rows."""

    train: list[E]
    valid: list[E]
    counts: Counts
    valid_counts: Counts = field(default_factory=Counts)

    def fingerprint(self) -> str:
        """SHA-256 over every example; equal for the same data only."""
        digest = hashlib.sha256()
        for part in (self.train, self.valid):
            digest.update(len(part).to_bytes(8, "little"))
            for example in part:
                digest.update(example.fingerprint())
        return digest.hexdigest()


@runtime_checkable
class Prepares(Protocol[M_contra, E]):
    """An objective whose examples get numbers from a model before training, as those of a reference."""

    def prepare(
        self, model: M_contra, dataset: Dataset[E], folder: Path | None, base: str
    ) -> Generator[Advanced, None, Dataset[E]]:
        """The dataset with these numbers, yielding progress.

        `model` has the weights with which the run began, also in a resumed run, and `base` is their fingerprint.
        Numbers kept in `folder`, that of the run, are read instead of computed again.
        """
        ...


def load(
    config: TrainConfig, objective: Objective[Any, E, Any], tokenizer: TextTokenizer, context_length: int | None = None
) -> Dataset[E]:
    """The dataset of `loading`, without its progress."""
    work = loading(config, objective, tokenizer, context_length)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def sources(config: TrainConfig) -> tuple[rows.Source, rows.Source | None]:
    """The training rows and the validation rows or None.

    Raises DataError for missing files, UsageError for a share of the training rows beside validation rows.
    """
    train, valid = rows.find_files(config.data, config.valid)
    if valid and config.valid_fraction > 0:
        raise UsageError(
            "valid_fraction has no effect",
            cause=f"{valid} has the validation rows",
            remedy="valid_fraction = 0, or the data without that file",
        )
    return train, valid


def loading(
    config: TrainConfig, objective: Objective[Any, E, Any], tokenizer: TextTokenizer, context_length: int | None = None
) -> Generator[Advanced, None, Dataset[E]]:
    """Tokenize the rows that `config` names, yielding progress; returns the dataset.

    An example has at most `max_seq_length` tokens, and at most `context_length` if that is not None. Raises DataError
    if no example has a supervised token.
    """
    train_path, valid_path = sources(config)
    encoder = Encoder(objective, tokenizer, config)
    encoded = yield from encoder.encoded([train_path, *([valid_path] if valid_path else [])])
    train_rows, valid_rows = encoded if valid_path else (encoded[0], [])
    if config.valid_fraction > 0:
        train_rows, valid_rows = _hold_out(train_rows, config.valid_fraction, config.seed, train_path)
    limit = min(config.max_seq_length, context_length or config.max_seq_length)
    made: list[tuple[list[E], Counts]] = []
    for group in (train_rows, valid_rows):
        encoding = Encoding[E](config.long_rows, limit)
        for row in group:
            encoding.add(row.kind, row.examples, row.unused)
        made.append((encoding.kept, encoding.counted()))
    (train, counts), (valid, valid_counts) = made
    trained = _hashes([example] for example in train if valid)
    shared = int(np.isin(_hashes([example] for example in valid), trained).sum())
    if not train:
        longer = counts.truncated_rows + counts.dropped_rows
        larger = "a model with a longer context" if limit < config.max_seq_length else "a larger max_seq_length"
        raise DataError(
            f"{train_path} has no supervised tokens",
            cause=f"of {counts.rows} rows {counts.unsupervised_rows} have none in {limit} tokens, {longer} are longer",
            remedy=f"shorter prompts, or {larger}" if longer else "assistant turns or completions in the rows",
        )
    return Dataset(train, valid, counts, replace(valid_counts, shared_rows=shared))


def _hashes(groups: Iterable[Sequence[AnyExample]]) -> np.ndarray:
    """8 bytes for each group of examples, (N,) uint64, equal for equal ones."""
    prints = (b"".join(example.fingerprint() for example in group) for group in groups)
    return np.frombuffer(b"".join(blake2b(each, digest_size=8).digest() for each in prints), dtype=np.uint64)


def _hold_out(
    all_rows: list[EncodedRow[E]], fraction: float, seed: int, path: rows.Source
) -> tuple[list[EncodedRow[E]], list[EncodedRow[E]]]:
    """Parts for training and for validation; rows with equal examples stay together.

    Groups of more rows than are wanted are held out only if all are so large: then the smallest one.
    """
    _, first, groups = np.unique(_hashes(row.examples for row in all_rows), return_index=True, return_inverse=True)
    count = max(1, round(fraction * len(all_rows)))
    if count >= len(all_rows) or len(first) == 1:
        raise DataError(
            f"{path} has too few rows to hold out some for evaluation",
            cause=f"it has {len(all_rows)}, {len(first)} of them different",
        )
    random = np.random.Generator(np.random.Philox(key=np.array([seed, 2**63], dtype=np.uint64)))
    sizes = np.bincount(groups)
    order = np.argsort(first)[random.permutation(len(first))]
    chosen, total = list[int](), 0
    for group in order[sizes[order] <= count] if sizes.min() <= count else order[[sizes[order].argmin()]]:
        if total < count and total + sizes[group] < len(all_rows):
            chosen.append(group)
            total += sizes[group]
    held = np.isin(groups, chosen)
    return [row for i, row in enumerate(all_rows) if not held[i]], [row for i, row in enumerate(all_rows) if held[i]]

"""The check of all files of a run."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from macllm.errors import DataError
from macllm.train import rows
from macllm.train.config import TrainConfig
from macllm.train.events import Advanced
from macllm.train.rows import Row

from . import by_objective, findings
from .lengths import Lengths
from .likeness import Key, copies, question_key, similar_key
from .report import DataReport, Finding, SplitReport, TokenUse
from .split import CheckedSplit, Role, RunSettings, encode_split, read_split

if TYPE_CHECKING:
    from macllm.text.tokenizer import Tokenizer

_FINDERS = (findings.reading, findings.supervision, by_objective.prompts, findings.content, findings.preferences)
_ORDER = {"error": 0, "warning": 1, "note": 2}


def check(
    config: TrainConfig,
    tokenizer: Tokenizer,
    *,
    against: Sequence[str] = (),
    context_length: int | None = None,
    show: int = 0,
) -> DataReport:
    """The report of `checking`, without its progress."""
    work = checking(config, tokenizer, against=against, context_length=context_length, show=show)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def checking(
    config: TrainConfig,
    tokenizer: Tokenizer,
    *,
    against: Sequence[str] = (),
    context_length: int | None = None,
    show: int = 0,
) -> Generator[Advanced, None, DataReport]:
    """Check the rows that `config` names, yielding progress; returns the report.

    `against` are further files that must not share rows with the training rows, such as a test set. `show` of the
    training rows are reported with their loss masks. Raises DataError for missing files, and for rows of `against` that
    cannot be read.
    """
    limit = min(config.max_seq_length, context_length or config.max_seq_length)
    settings = RunSettings(config, tokenizer, limit, context_length)
    train, valid = rows.find_files(config.data, config.valid)
    files: list[tuple[Role, str, rows.Source]] = [("train", "train", train)]
    if valid:
        files.append(("valid", "valid", valid))
    for each in against:
        own = rows.open_split(each, "test") if rows.is_dataset(each) else rows.find_files(each, "")[0]
        files.append(("test", each if rows.is_dataset(each) else Path(each).name, own))
    splits: list[CheckedSplit] = []
    for role, name, path in files:
        split = yield from read_split(role, name, path, settings)
        if role == "test" and (split.unreadable or not split.rows):
            raise split.unreadable[0] if split.unreadable else DataError(f"no rows in {path}")
        splits.append(split)
    for split in splits:
        yield from encode_split(split, settings, show if split.role == "train" else 0)
    found: list[Finding] = [*by_objective.special_tokens(settings), *by_objective.labels(splits, settings.objective)]
    found += findings.kinds([split for split in splits if split.role != "test"], settings.objective)
    for split in splits:
        for finder in _FINDERS:
            found += finder(split, settings)
    alike = [_Likeness(split.rows) for split in splits]
    for split, likeness in zip(splits, alike, strict=True):
        found += likeness.duplicates(split)
    for one, other in itertools.combinations(range(len(splits)), 2):
        if splits[one].role != "test":
            found += _leaks(splits[one], splits[other], alike[one], alike[other])
    found.sort(key=lambda finding: _ORDER[finding.level])
    return _report(splits, alike, found, settings)


class _Likeness:
    """Keys of a file's rows, and its copies."""

    def __init__(self, all_rows: Sequence[Row]) -> None:
        self.similar = list(map(similar_key, all_rows))
        self.questions = list(map(question_key, all_rows))
        self.exact_copies = copies(map(rows.content_key, all_rows))
        exact = {number for number, _ in self.exact_copies}
        self.similar_copies = [pair for pair in copies(self.similar) if pair[0] not in exact]

    def duplicates(self, split: CheckedSplit) -> Iterator[Finding]:
        """Findings of copies within the file."""
        for code, text, pairs in (
            ("duplicates", "equal to an earlier row", self.exact_copies),
            ("near-duplicates", "equal to an earlier row but for white space and case", self.similar_copies),
        ):
            if pairs:
                yield _pairs("warning", code, text, split, split, pairs)


def _leaks(split: CheckedSplit, other: CheckedSplit, own: _Likeness, theirs: _Likeness) -> Iterator[Finding]:
    """Findings of rows and of questions that two files share."""
    same = _shared(theirs.similar, own.similar)
    if same:
        text = f"shared with {split.name} (but for white space and case)"
        yield _pairs("warning", "leakage", text, other, split, same, "leave them out of one of the two")
    known = {number for number, _ in same}
    asked = [pair for pair in _shared(theirs.questions, own.questions) if pair[0] not in known]
    if asked:
        text = f"with a question that {split.name} asks too, with another answer"
        yield _pairs("note", "shared-questions", text, other, split, asked)


def _shared(keys: Sequence[Key | None], known: Sequence[Key | None]) -> list[tuple[int, int]]:
    """Pairs of numbers: each of `keys` that is among `known`, and its first place there."""
    first: dict[Key | None, int] = {}
    for number, key in enumerate(known):
        first.setdefault(key, number)
    return [(number, first[key]) for number, key in enumerate(keys) if key is not None and key in first]


def _pairs(
    level: findings.Level, code: str, text: str, split: CheckedSplit, other: CheckedSplit,
    pairs: Sequence[tuple[int, int]], remedy: str = "",
) -> Finding:  # fmt: skip
    places = [f"{split.rows[a].where} = {other.rows[b].where}" for a, b in pairs[: findings.MOST_PLACES]]
    text = f"{findings.rows_of(split, len(pairs))} {text}"
    return Finding(level, code, text, len(pairs), tuple(places), remedy)


def _report(
    splits: Sequence[CheckedSplit], alike: Sequence[_Likeness], found: Sequence[Finding], settings: RunSettings
) -> DataReport:
    tokenizer = settings.tokenizer
    largest = max((int(example.tokens.max()) for example in splits[0].encoding.kept), default=0)
    size = max(tokenizer.vocab_size, largest + 1)
    seen, supervised = splits[0].token_counts(size)
    used = [index for index in sorted(tokenizer.special_ids) if index < size and seen[index]]
    special = sorted({*used, *(index for index in tokenizer.end_token_ids if index < size)})
    return DataReport(
        splits=tuple(_split_report(split, likeness) for split, likeness in zip(splits, alike, strict=True)),
        findings=tuple(found),
        max_seq_length=settings.limit,
        vocabulary=tokenizer.vocab_size,
        supervised_vocabulary=int(np.count_nonzero(supervised)),
        special_tokens={
            tokenizer.id_to_token(index) or str(index): TokenUse(
                index, int(seen[index]), int(supervised[index]), index in tokenizer.end_token_ids
            )
            for index in special
        },
        shown=tuple(splits[0].shown),
    )


def _split_report(split: CheckedSplit, likeness: _Likeness) -> SplitReport:
    return SplitReport(
        role=split.role,
        name=split.name,
        path=split.path,
        rows=len(split.rows) + len(split.unreadable),
        counts=split.encoding.counted(),
        lengths=Lengths.of([whole for whole, _ in split.wholes]),
        supervised_lengths=Lengths.of([supervised for _, supervised in split.wholes]),
        unreadable_rows=len(split.unreadable),
        duplicate_rows=len(likeness.exact_copies),
        similar_rows=len(likeness.similar_copies),
    )

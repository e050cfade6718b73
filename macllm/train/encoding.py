"""Examples within a longest length: truncated, split or dropped, and counted. Imports no mlx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Generic

from macllm.errors import DataError

from .config import LongRows
from .contract import E, InPieces
from .events import Counts
from .unused import Unused

_HOW_LONG_ROWS_FIT = ("truncated_rows", "split_rows", "dropped_rows")


class Encoding(Generic[E]):
    """The examples of rows, none longer than `limit` tokens, and the statistics of the rows."""

    def __init__(self, long_rows: LongRows, limit: int) -> None:
        self._limit = limit
        self._long_rows: LongRows = long_rows
        self.kept: list[E] = []
        self._counts = Counts()

    def add(self, kind: str, made: Sequence[E], unused: Unused = Unused.NOTHING) -> list[E]:
        """Add a row of `kind` by its examples, which lack `unused` of it; those that are kept.

        Raises DataError for one that is too long, with long_rows="error".
        """
        before, counts = self._counts, self._counts
        fitting: list[E] = []
        for example in made:
            pieces, counts = _fit(example, self._long_rows, self._limit, counts)
            fitting += pieces
        added = [piece for piece in fitting if piece.num_target_tokens]
        once = {name: min(getattr(counts, name), getattr(before, name) + 1) for name in _HOW_LONG_ROWS_FIT}
        self._counts = replace(
            counts,
            rows=before.rows + 1,
            expanded_rows=before.expanded_rows + (len(made) > 1),
            unsupervised_rows=before.unsupervised_rows + (not added and bool(fitting or not made)),
            unended_rows=before.unended_rows + (bool(added) and not any(each.ends for each in added)),
            unused_column_rows=before.unused_column_rows + (Unused.COLUMNS in unused),
            unwritten_rows=before.unwritten_rows + bool(unused & (Unused.CALLS | Unused.REASONING)),
            kinds={**before.kinds, kind: before.kinds.get(kind, 0) + 1},
            **once,  # a row of several examples counts once
        )
        self.kept += added
        return added

    def counted(self) -> Counts:
        """The counts, with the number of tokens in the kept examples."""
        tokens = sum(len(sequence) for each in self.kept for sequence in each.sequences)
        supervised = sum(each.num_target_tokens for each in self.kept)
        return replace(self._counts, tokens=tokens, supervised_tokens=supervised)


def _fit(example: E, long_rows: LongRows, most: int, counts: Counts) -> tuple[list[E], Counts]:
    if len(example) <= most:
        return [example], counts
    if long_rows == "error":
        raise DataError(
            f"{example.where} has {len(example)} tokens, more than {most}",
            remedy="--long-rows truncate (or split, or drop), or a larger --max-seq-length",
        )
    if long_rows == "drop":
        return [], replace(counts, dropped_rows=counts.dropped_rows + 1)
    if long_rows == "split" and example.splittable and most > 1:
        return _pieces(example, most), replace(counts, split_rows=counts.split_rows + 1)
    lost = counts.lost_tokens + len(example) - most
    return [example.cut(0, most)], replace(counts, truncated_rows=counts.truncated_rows + 1, lost_tokens=lost)


def _pieces(example: E, most: int) -> list[E]:
    if isinstance(example, InPieces):
        return list(example.pieces(most))
    # Neighbouring pieces share one token, so that every token but the first is predicted once.
    return [example.cut(start, start + most) for start in range(0, len(example) - 1, most - 1)]

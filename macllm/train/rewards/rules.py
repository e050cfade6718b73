"""Rewards by simple rules."""

from __future__ import annotations

import re
from dataclasses import dataclass

from macllm.errors import DataError, UsageError

from .answers import Answers


@dataclass(frozen=True)
class ExactMatch:
    """1 for the text in a column of the row, spaces around it aside; else 0."""

    column: str

    def __call__(self, answers: Answers) -> list[float]:
        """A number for each answer. Raises DataError for a row without the column."""
        if self.column not in answers.columns:
            raise DataError(
                f"{answers.where} has no column {self.column!r}",
                cause="exact_match compares answers with it",
                remedy="--answer-feature with the column of the expected answer",
            )
        expected = str(answers.columns[self.column]).strip()
        return [float(text.strip() == expected) for text in answers.completions]


class Format:
    """1 for an answer that matches a regular expression as a whole, spaces around it aside; else 0."""

    def __init__(self, pattern: str) -> None:
        """Raises UsageError for an invalid pattern."""
        try:
            self._pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UsageError(f"format:{pattern} is not a regular expression", cause=str(error)) from error

    def __call__(self, answers: Answers) -> list[float]:
        """A number for each answer."""
        return [float(self._pattern.fullmatch(text.strip()) is not None) for text in answers.completions]

"""Rewards by simple rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from macllm.errors import DataError, UsageError

from .answers import Answers


@dataclass(frozen=True)
class ExactMatch:
    """1 for the text in a column of the row, spaces around it aside; else 0."""

    column: str

    def __call__(self, answers: Answers) -> list[float]:
        """A number for each answer."""
        expected = str(answers.columns[self.column]).strip()
        return [float(text.strip() == expected) for text in answers.completions]

    def check(self, columns: Mapping[str, Any], where: str) -> None:
        """Raise DataError for a row without the column."""
        if self.column not in columns:
            raise DataError(
                f"{where} has no column {self.column!r}",
                cause="exact_match compares answers with it",
                remedy="--answer-feature with the column of the expected answer",
            )


class Format:
    """1 for an answer that matches a regular expression as a whole, spaces around it aside; else 0."""

    def __init__(self, pattern: str) -> None:
        """Raises UsageError for an empty or invalid pattern."""
        if not pattern:
            raise UsageError("format: has no pattern", remedy="--rewards 'format:<think>.*</think>.*'")
        try:
            self._pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UsageError(f"format:{pattern} is not a regular expression", cause=str(error)) from error

    def __call__(self, answers: Answers) -> list[float]:
        """A number for each answer."""
        return [float(self._pattern.fullmatch(text.strip()) is not None) for text in answers.completions]

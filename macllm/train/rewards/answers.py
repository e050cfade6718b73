"""Arguments of a reward function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answers:
    """The answers to one prompt: their texts, without the stop token, and their tokens.

    `prompt` is that of the row, text or messages, and `columns` are the row's others; `where` is its file and line.
    """

    prompt: Any
    completions: Sequence[str]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Any]
    where: str


RewardFunction = Callable[[Answers], Sequence[float | None]]
"""A number for each answer; None where the function has nothing to say."""

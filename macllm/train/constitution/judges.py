"""Judges of two answers: a model that is asked, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from macllm.errors import DataError
from macllm.train import user_functions

from .principles import Principle
from .speaker import Speaker


class PreferenceJudge(Protocol):
    """A judge of two answers to a question by a principle."""

    def log_odds(self, question: str, first: str, second: str, principle: Principle) -> float:
        """The log-odds that the first answer is the better one."""
        ...


class AskedJudge:
    """A speaker that is asked to choose between A and B."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker = speaker

    def log_odds(self, question: str, first: str, second: str, principle: Principle) -> float:
        """The log-odds of A over B as its reply. Raises DoesNotFitError for too long a question."""
        text = principle.asked("preference", question=question, first=first, second=second)
        return self._speaker.prefers_first([{"role": "user", "content": text}])


class FunctionJudge:
    """A function `file.py:function` of question, first, second and principle.

    It is called with these texts as keywords, and returns the log-odds for the first answer, a number. `identity` is
    its name with the hash of its file. Raises UsageError for a function that is not found.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._function: Callable[..., Any] = user_functions.load(name, "--judge")
        self.identity = user_functions.identity(name)

    def log_odds(self, question: str, first: str, second: str, principle: Principle) -> float:
        """The number of the function. Raises DataError if it fails, or returns none that is finite."""
        try:
            found = float(self._function(question=question, first=first, second=second, principle=principle.text))
            if abs(found) < float("inf"):
                return found
            cause = f"it returned {found}"
        except (Exception, SystemExit) as error:
            cause = user_functions.cause(error, self._name)
        raise DataError(
            f"the judge {self._name} failed", cause=cause, remedy="a finite number, positive if the first one is better"
        )

"""Reward functions in a Python file of the user's, named `file.py:function`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from macllm.errors import DataError
from macllm.train import user_functions
from macllm.train.config.reinforcement import is_function

from .answers import Answers


class FileFunction:
    """A function in a file, called with the answers to one prompt at a time.

    It is called as TRL does: with the keywords `prompts`, `completions` (texts), `completion_ids` and every other
    column of the row, each a list with an element for each answer, as far as it takes them; and returns a list of
    numbers. None is no opinion.
    """

    def __init__(self, name: str) -> None:
        """Run the file, and find the function. Raises UsageError."""
        self._name = name
        self._function = user_functions.load(name, "--rewards")
        parameters = inspect.signature(self._function).parameters.values()
        self._takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
        self._takes = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}

    def __call__(self, answers: Answers) -> list[Any]:
        """The numbers of the function. Raises DataError, with the row, if it fails or returns no list."""
        count = len(answers.completions)
        given: Mapping[str, Any] = {
            **{name: [value] * count for name, value in answers.columns.items()},
            "prompts": [answers.prompt] * count,
            "completions": list(answers.completions),
            "completion_ids": [list(ids) for ids in answers.completion_ids],
        }
        taken = given if self._takes_all else {name: value for name, value in given.items() if name in self._takes}
        try:
            found = self._function(**taken)
            numbers = list(found) if isinstance(found, Iterable) and not isinstance(found, str) else None
        except (Exception, SystemExit) as error:  # a generator fails while it is listed
            takes = f"a function of completions, and of these if it needs them: {', '.join(sorted(given))}"
            raise DataError(
                f"the reward {self._name} failed for {answers.where}",
                cause=user_functions.cause(error, self._name),
                remedy=takes if isinstance(error, TypeError) else None,
            ) from error
        if numbers is None:
            raise DataError(
                f"the reward {self._name} returned no list for {answers.where}",
                cause=f"it returned {found!r}",
                remedy="a list of numbers, one for each completion; None for no opinion",
            )
        return numbers


def identity(rewards: Sequence[str]) -> list[str]:
    """The names of rewards; functions by the hash of their file in place of its folder."""
    return [user_functions.identity(name) if is_function(name) else name for name in rewards]

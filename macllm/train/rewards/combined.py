"""Several rewards as one number for each answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np

from macllm.errors import DataError
from macllm.nn.protocol import LanguageModel
from macllm.train.config.reinforcement import ReinforcementSettings
from macllm.train.render import TextTokenizer

from .answers import Answers, RewardFunction
from .functions import FileFunction
from .judge import Judge
from .model import RewardModel
from .rules import ExactMatch, Format


class Rewards:
    """The weighted sum of reward functions, by name.

    A function that answers None is left out of an answer's sum. An answer for which all do, or one of them is NaN or
    infinite, has no reward.
    """

    def __init__(self, functions: Mapping[str, RewardFunction], weights: Sequence[float]) -> None:
        self._functions, self._weights = dict(functions), list(weights)

    def __call__(self, answers: Answers) -> np.ndarray:
        """The rewards (G,) float64, NaN for none. Raises DataError for results that are no numbers."""
        each = np.array([_checked(name, give(answers), answers) for name, give in self._functions.items()])
        values, silent = each[..., 0], each[..., 1] == 1
        total = (np.where(silent, 0.0, values) * np.array(self._weights)[:, None]).sum(axis=0)
        return np.where(silent.all(axis=0) | ~np.isfinite(total), np.nan, total)


def combined(settings: ReinforcementSettings, model: LanguageModel, tokenizer: TextTokenizer) -> Rewards:
    """The rewards that settings name. Raises UsageError for a function that is not found."""
    made = {name: _named(name, settings, model, tokenizer) for name in settings.rewards}
    return Rewards(made, settings.weights_of_rewards)


def _named(
    name: str, settings: ReinforcementSettings, model: LanguageModel, tokenizer: TextTokenizer
) -> RewardFunction:
    if name == "exact_match":
        return ExactMatch(settings.answer_feature)
    if name == "judge":
        return Judge(model, tokenizer, settings.judge)
    if name.startswith("format:"):
        return Format(name.removeprefix("format:"))
    if name.startswith("model:"):
        return RewardModel(name.removeprefix("model:"))
    return FileFunction(name)


def _checked(name: str, values: Sequence[object], answers: Answers) -> list[tuple[float, bool]]:
    """Each value as a number, and True for None.

    Raises DataError, with the row, for another type or count.
    """
    if len(values) != len(answers.completions):
        raise DataError(
            f"the reward {name} gave {len(values)} numbers for {len(answers.completions)} answers to {answers.where}",
            remedy="a number for each answer, or None",
        )
    for value in values:
        if value is not None and not isinstance(value, Real | np.number | np.bool_):
            raise DataError(
                f"the reward {name} gave {value!r} for an answer to {answers.where}", remedy="a number, or None"
            )
    return [(0.0, True) if value is None else (float(value), False) for value in values]  # type: ignore[arg-type]

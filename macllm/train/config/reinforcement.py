"""Settings of objectives that learn from rewards of generated answers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from macllm.errors import UsageError

from .setting_group import SMALLEST, SettingGroup

PolicyLoss = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"]
Importance = Literal["token", "sequence"]
ScaleRewards = Literal["group", "batch", "none"]
_HIGH = {"dapo": 0.28, "cispo": 4.0}  # arXiv:2503.14476; a bound of 5 in arXiv:2510.13786


@dataclass(frozen=True, kw_only=True)
class ReinforcementSettings(SettingGroup):
    """Settings of objectives that learn from rewards of generated answers."""

    SUBJECT = "Reinforcement"
    RANGES = (
        *((name, 0, 2**20) for name in ("num_generations", "num_iterations")),
        *((name, 1, 2**20) for name in ("max_completion_length", "num_minibatches")),
        *((name, 0.0, 1e3) for name in ("kl_coefficient", "clip_high", "value_coefficient")),
        *((name, SMALLEST, 1e3) for name in ("clip_low", "value_clip")),
        *((name, 0.0, 1.0) for name in ("discount", "gae_lambda")),
    )

    rewards: Annotated[
        tuple[str, ...],
        "rewards: exact_match, format:REGEX, judge, model:NAME, file.py:function (your code); empty: none",
    ] = ()
    reward_weights: Annotated[tuple[str, ...], "weights of the rewards, in their order; empty: 1 each"] = ()
    answer_feature: Annotated[str, "column of the answer that exact_match expects"] = "answer"
    judge: Annotated[str, "the judge's Yes-or-No question, with {prompt} and {completion}; empty: is it good"] = ""
    num_generations: Annotated[int, "answers generated for each prompt; 0: grpo 8, ppo 1"] = 0
    max_completion_length: Annotated[int, "longest generated answer, in tokens"] = 256
    num_iterations: Annotated[int, "passes over the answers before new ones are generated; 0: grpo 1, ppo 4"] = 0
    num_minibatches: Annotated[int, "optimizer steps in each of these passes"] = 1
    kl_coefficient: Annotated[float, "weight of the divergence from the unadapted model; 0: none"] = 0.04
    clip_low: Annotated[float, "ratios of probabilities below 1 - clip_low are clipped"] = 0.2
    clip_high: Annotated[float, "ratios above 1 + clip_high are clipped; 0: clip_low, dapo 0.28, cispo 4"] = 0.0
    policy_loss: Annotated[
        PolicyLoss, "mean over answers (grpo), tokens (bnpo, dapo), a constant (dr_grpo); cispo clips weights"
    ] = "grpo"
    importance: Annotated[Importance, "ratios of tokens, or of whole answers (GSPO)"] = "token"
    scale_rewards: Annotated[
        ScaleRewards, "divide advantages by the deviation of a prompt's rewards, of all, or not (dr_grpo's paper)"
    ] = "group"
    leave_one_out: Annotated[bool, "compare a reward with the mean of the other answers only (RLOO)"] = False
    discount: Annotated[float, "discount of later rewards, per token"] = 1.0
    gae_lambda: Annotated[float, "weight of longer returns in the advantages (GAE); 1: returns alone"] = 0.95
    value_coefficient: Annotated[float, "weight of the value head's loss"] = 0.1
    value_clip: Annotated[float, "largest change of a value that its loss rewards"] = 0.2
    whiten: Annotated[bool, "advantages with mean 0 and deviation 1 over all answers"] = True

    @property
    def weights_of_rewards(self) -> tuple[float, ...]:
        """The weight of each reward. Raises UsageError for texts that are no numbers, and for another count."""
        if not self.reward_weights:
            return (1.0,) * len(self.rewards)
        try:
            weights = tuple(map(float, self.reward_weights))
        except ValueError:
            weights = ()
        if not weights or not all(map(math.isfinite, weights)):
            raise UsageError(f"reward_weights cannot be {', '.join(self.reward_weights)}", cause="they must be numbers")
        if len(weights) != len(self.rewards):
            raise UsageError(
                "reward_weights must have a number for each reward",
                cause=f"there are {len(self.rewards)} rewards and {len(weights)} weights",
            )
        return weights

    @property
    def highest_ratio(self) -> float:
        """1 + clip_high, or its default."""
        return 1 + (self.clip_high or _HIGH.get(self.policy_loss, self.clip_low))


def is_function(reward: str) -> bool:
    """True for the name of a function in a file."""
    path, _, function = reward.rpartition(":")
    return path.endswith(".py") and function.isidentifier()


def located(rewards: Iterable[Any], folder: Path) -> list[Any]:
    """The names of rewards, with absolute paths in place of those relative to `folder`; other values kept."""
    return [_located(each, folder) if isinstance(each, str) else each for each in rewards]


def _located(name: str, folder: Path) -> str:
    kind, _, model = name.partition(":")
    if kind == "model" and (own := folder / Path(model).expanduser()).is_dir():
        return f"model:{own.resolve()}"
    path, _, function = name.rpartition(":")
    if not is_function(name):
        return name
    return f"{(folder / Path(path).expanduser()).resolve()}:{function}"


def check(settings: ReinforcementSettings, objective: str, method: str) -> None:
    """Raise UsageError for settings of an objective of reinforcement that contradict each other."""
    if objective not in ("grpo", "ppo"):
        return
    if not settings.rewards:
        raise UsageError(f"{objective} has no reward", remedy="--rewards exact_match, or file.py:function")
    settings.weights_of_rewards  # noqa: B018
    for name in settings.rewards:
        if (
            name not in ("exact_match", "judge")
            and not name.startswith(("format:", "model:"))
            and not is_function(name)
        ):
            known = "exact_match, judge, format:REGEX, model:NAME, file.py:function"
            raise UsageError(f"unknown reward {name!r}", remedy=f"some of {known}")
    if len({*settings.rewards}) < len(settings.rewards):
        raise UsageError("a reward is given twice", remedy="--reward-weights")
    if settings.judge and "judge" not in settings.rewards:
        raise UsageError("judge has no effect", cause="it is not among the rewards", remedy="--rewards judge")
    if "judge" in settings.rewards and settings.judge and "{completion}" not in settings.judge:
        raise UsageError("the question of judge lacks {completion}", remedy='--judge "Is this polite? {completion}"')
    if method == "full" and "judge" in settings.rewards:
        raise UsageError(
            "the reward judge needs an adapter",
            cause="the judge is the model without its adapter, and method is full",
            remedy="--lora, or --rewards model:NAME",
        )
    if method == "full" and settings.kl_coefficient:
        raise UsageError(
            "kl_coefficient needs an adapter",
            cause="the reference is the model without its adapter, and method is full",
            remedy="--kl-coefficient 0, or --lora",
        )
    if objective == "grpo" and settings.num_generations == 1:
        raise UsageError("num_generations cannot be 1", cause="grpo compares answers to the same prompt", remedy="8")

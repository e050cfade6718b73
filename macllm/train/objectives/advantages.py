"""Advantages, in float64: of groups of answers, and by generalized advantage estimation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from macllm.train.config.reinforcement import ScaleRewards

_EPSILON = 1e-4


def group_advantages(
    groups: Sequence[np.ndarray], scale: ScaleRewards, *, leave_one_out: bool = False
) -> list[np.ndarray]:
    """Rewards minus the mean of their group (G,), divided by a deviation.

    arXiv:2402.03300, section 4.1.2. The deviation is that of the group or of all rewards (the batch), with G - 1 in
    the denominator. Rewards of NaN are in no mean and get 0, and so do all of a group whose rewards are equal.
    `leave_one_out` compares with the mean of the others (RLOO, arXiv:2402.14740). As in TRL, 1e-4 is added to the
    deviation, which the paper's formula lacks: rounding differences of equal rewards would become advantages of 1.
    """
    spread = _deviation(np.concatenate([np.asarray(each, np.float64) for each in groups]))
    found: list[np.ndarray] = []
    for rewards in groups:
        rewards = np.asarray(rewards, np.float64)
        valid = np.isfinite(rewards)
        count = int(valid.sum())
        if count < 2 or np.ptp(rewards[valid]) == 0:
            found.append(np.zeros(len(rewards)))
            continue
        advantages = rewards - rewards[valid].mean()
        if leave_one_out:
            advantages = advantages * (count / (count - 1))
        if scale != "none":
            advantages = advantages / ((_deviation(rewards) if scale == "group" else spread) + _EPSILON)
        found.append(np.where(valid, advantages, 0.0))
    return found


def _deviation(rewards: np.ndarray) -> float:
    """The standard deviation of the finite ones, with N - 1 in the denominator; 0 for fewer than two."""
    valid = rewards[np.isfinite(rewards)]
    return float(valid.std(ddof=1)) if len(valid) > 1 else 0.0


def generalized(rewards: np.ndarray, values: np.ndarray, discount: float, gae_lambda: float) -> np.ndarray:
    """Generalized advantages (T,) of rewards and values (T,) of one episode, whose end has the value 0.

    arXiv:1506.02438, eq. 16. With lambda 1 they are returns minus values, with lambda 0 the errors of one step.
    """
    rewards, values = np.asarray(rewards, np.float64), np.asarray(values, np.float64)
    errors = rewards + discount * np.append(values[1:], 0.0) - values
    advantages = np.zeros(len(errors))
    later = 0.0
    for t in reversed(range(len(errors))):
        later = errors[t] + discount * gae_lambda * later
        advantages[t] = later
    return advantages


def whitened(advantages: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Advantages with mean 0 and deviation 1 over all tokens of all answers."""
    every = np.concatenate(advantages)
    mean, deviation = every.mean(), every.std()
    return [(each - mean) / (deviation + 1e-8) for each in advantages]

"""Reinforcement learns a toy task, and nothing from shuffled rewards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.learning.reinforcement import CHANCE, OPTIMUM, learned


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["grpo", "ppo"])
def test_expected_reward_comes_near_the_optimum(objective: str, tmp_path: Path) -> None:
    assert learned(objective, "copies", seed=0, steps=200, folder=tmp_path) > 0.98 * OPTIMUM


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["grpo", "ppo"])
def test_nothing_is_learned_from_shuffled_rewards(objective: str, tmp_path: Path) -> None:
    assert learned(objective, "shuffled", seed=0, steps=100, folder=tmp_path) < CHANCE + 0.1

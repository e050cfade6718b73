"""Heads learn, and nothing from shuffled labels: one seed of the scripts beside this file."""

from __future__ import annotations

import pytest

from tests.learning import labels, reward

pytestmark = pytest.mark.slow


def test_a_reward_model_learns_a_rule_and_nothing_from_random_order() -> None:
    found = reward.measured(0)
    assert found["accuracy"] > 0.9
    assert abs(found["random order"] - 0.5) < 0.1


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_an_encoder_learns_labels_and_nothing_from_shuffled_ones(task: labels.Task) -> None:
    found = labels.measured(task, 0)
    assert found["accuracy"] > found["more frequent"] + 0.05
    assert found["accuracy"] > 0.95
    assert found["shuffled"] < found["more frequent"] + 0.06

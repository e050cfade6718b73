"""The smallest version of the script on preferences: one seed of each objective."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.learning.preferences import CHANCE, LEARNED, OBJECTIVES, learn, make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("preferences") / "base")


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_held_out_preferences_are_learned_and_nothing_from_random_order(
    objective: str, base: Path, tmp_path: Path
) -> None:
    assert learn(base, tmp_path / "preferred", objective, 0, shuffled=False)["preference"] >= LEARNED
    assert learn(base, tmp_path / "shuffled", objective, 0, shuffled=True)["preference"] <= CHANCE

"""One trajectory from several settings, over a few steps."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tables import trajectories
from tests.tables.trajectories import QUICK, WAYS, Trajectory, compare, held, residual


@pytest.mark.parametrize("adapts", [False, True], ids=["all weights", "adapter"])
@pytest.mark.parametrize("name", [*QUICK, "resumed after step 17"])
def test_settings_that_only_change_the_computation_keep_the_trajectory(name: str, adapts: bool) -> None:
    found = compare(name, adapts, steps=19 if WAYS[name].stop else 6)
    assert held(WAYS[name], found), found


def test_a_one_sided_difference_is_seen_where_rounding_would_not_be() -> None:
    plain = Trajectory(np.full(50, 2.0), "a")
    noise = np.resize([1.0, -1.0], 50)
    rounded, one_sided = (Trajectory(2.0 + 2e-6 * by, "b") for by in (noise, np.ones(50)))
    way = WAYS["2 x 4 rows"]
    assert held(way, residual(plain, rounded))
    assert not held(way, residual(plain, one_sided))
    assert not held(WAYS["layers checkpointed"], residual(plain, rounded))


def test_attention_by_blocks_computes_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    blocks = trajectories.query_blocks.attention_in_blocks
    monkeypatch.setattr(
        trajectories.query_blocks, "attention_in_blocks", lambda *args: seen.append(len(args)) or blocks(*args)
    )
    trajectories.trajectory(WAYS["MLX's operations, attention by blocks"], adapts=True, steps=1)
    assert seen

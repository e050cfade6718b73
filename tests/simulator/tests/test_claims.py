"""Bugs in macllm's kernels that their own quick tests must see. All of it is slow."""

from __future__ import annotations

import pytest

from tests.simulator.claims import BROKEN, Broken

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bug", BROKEN, ids=lambda bug: f"{bug.kernel}: {bug.what}")
def test_a_quick_test_sees_the_bug(bug: Broken) -> None:
    assert bug.seen()

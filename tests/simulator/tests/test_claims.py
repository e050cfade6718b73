"""Bugs in macllm's kernels that their own quick tests must see."""

from __future__ import annotations

import pytest

from tests.simulator.claims import BROKEN, Broken
from tests.simulator.mutants.page import PAGE


def test_the_page_has_the_number_of_mutants() -> None:
    assert f"{len(BROKEN)} more mutants" in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("bug", BROKEN, ids=lambda bug: f"{bug.kernel}: {bug.what}")
def test_a_quick_test_kills_the_mutant(bug: Broken) -> None:
    assert bug.seen()

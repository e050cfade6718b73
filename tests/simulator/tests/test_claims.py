"""Mutants of macllm's kernels that their quick tests must kill."""

from __future__ import annotations

import pytest

from tests.simulator.claims import CLAIM_MUTANTS, ClaimMutant
from tests.simulator.mutants.page import PAGE


def test_the_page_has_the_number_of_mutants() -> None:
    assert f"{len(CLAIM_MUTANTS)} more mutants" in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("mutant", CLAIM_MUTANTS, ids=lambda mutant: f"{mutant.kernel}: {mutant.name}")
def test_a_quick_test_kills_the_mutant(mutant: ClaimMutant) -> None:
    assert mutant.is_killed()

"""Mutants of macllm's kernels are killed, by a fault or by other numbers. All of it is slow."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simulator.mutants import page
from tests.simulator.mutants.kernel_mutants import MUTANTS, Case, Mutant, killed_by, work

pytestmark = pytest.mark.slow
_correct: dict[Case, list[np.ndarray]] = {}


def correct(case: Case) -> list[np.ndarray]:
    if case not in _correct:
        _correct[case], log = work(case)
        assert log.faults == []
    return _correct[case]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.kernel}: {mutant.name}")
def test_a_mutant_of_a_kernel_is_killed(mutant: Mutant) -> None:
    assert killed_by(mutant, correct(mutant.case))


def test_every_family_of_kernels_has_a_mutant() -> None:
    families = {"flash", "kv", "qkv", "qmv", "moe", "sample", "linear"}
    assert {mutant.kernel.partition("_")[0] for mutant in MUTANTS} == families


def test_the_page_has_the_current_tables() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.written(text) == text, "python -m tests.simulator.mutants.page writes it"

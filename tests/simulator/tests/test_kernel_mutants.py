"""Bugs in macllm's own kernels are caught, by a fault or by other numbers. All of it is slow."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simulator.mutants import page
from tests.simulator.mutants.kernel_mutants import MUTANTS, Case, Mutant, killed_by, work

pytestmark = pytest.mark.slow
_right: dict[Case, list[np.ndarray]] = {}


def right(case: Case) -> list[np.ndarray]:
    if case not in _right:
        _right[case], log = work(case)
        assert log.faults == []
    return _right[case]


@pytest.mark.parametrize("bug", MUTANTS, ids=lambda bug: f"{bug.kernel}: {bug.what}")
def test_a_mutant_of_a_kernel_is_killed(bug: Mutant) -> None:
    assert killed_by(bug, right(bug.case))


def test_every_family_of_kernels_has_a_mutant() -> None:
    families = {"flash", "kv", "qkv", "qmv", "moe", "sample", "linear"}
    assert {bug.kernel.partition("_")[0] for bug in MUTANTS} == families


def test_the_page_has_the_current_tables() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.written(text) == text, "python -m tests.simulator.mutants.page writes it"

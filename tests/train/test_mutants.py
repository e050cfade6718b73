"""Each known bug of other trainers breaks a claim of this suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.mutants import MUTANTS, Mutant

RED = (AssertionError, pytest.fail.Exception)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bug_put_back_breaks_its_claim(mutant: Mutant, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    mutant.claim(whole)
    with pytest.MonkeyPatch.context() as patch:
        mutant.put(patch)
        with pytest.raises(RED):
            mutant.claim(broken)

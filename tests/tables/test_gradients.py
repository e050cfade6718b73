"""Loss and all gradients, on the batches of the table."""

from __future__ import annotations

import pytest

from tests.tables.gradients import BATCHES, SUBJECTS, compare

FEW = ("left padding", "a masked row", "token 0 in the text")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SUBJECTS)
def test_loss_and_every_gradient_are_within_float32_of_the_reference_in_float64(name: str) -> None:
    differences = compare(name, tuple(BATCHES) if name in (SUBJECTS[0], SUBJECTS[-1]) else FEW)
    assert [f"{batch}: {each}" for batch, each in differences.items() if not each.held] == []

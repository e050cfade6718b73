"""Bugs of every class, each put into a kernel that has none: the simulator must see the one and let the other pass."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simulator.compile import CompileError
from tests.simulator.mutations import BUGS, CLASSES, SUMMED, WITHOUT_BUGS, Bug, Kernel, run


@pytest.mark.parametrize("kernel", WITHOUT_BUGS)
def test_a_kernel_without_a_bug_passes(kernel: Kernel) -> None:
    result = run(kernel, kernel.source)
    assert result.faults == []
    assert np.array_equal(result.outputs[0], np.asarray(kernel.want, result.outputs[0].dtype))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.fault}: {bug.what}")
def test_a_planted_bug_is_seen(bug: Bug) -> None:
    found = bug.found()
    assert bug.fault in {fault.kind for fault in found}, found


def test_every_class_has_a_bug() -> None:
    assert {bug.fault for bug in BUGS} == CLASSES.keys()


def test_more_threads_than_a_group_has_are_a_fault() -> None:
    assert [fault.kind for fault in run(SUMMED, SUMMED.source, 2048).faults] == ["limit"]


def test_a_local_that_nobody_set_does_not_compile() -> None:
    source = SUMMED.source.replace("float total = simd_sum(part);", "float total; if (part > 3.0f) total = part;")
    with pytest.raises(CompileError, match="uninitialized"):
        run(SUMMED, source)

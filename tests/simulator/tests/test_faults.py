"""Mutants of every fault class: the simulator kills each and passes the correct kernel."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.simulator.compile import CompileError
from tests.simulator.mutants.mutations import CLASSES, CORRECT, FAULT_MUTANTS, SUMMED, FaultMutant, Kernel, N, run
from tests.simulator.run import RunOptions, default_options, run_orders
from tests.simulator.text import captured


@pytest.mark.parametrize("kernel", CORRECT)
def test_a_correct_kernel_passes(kernel: Kernel) -> None:
    result = run(kernel, kernel.source)
    assert result.faults == []
    assert np.array_equal(result.outputs[0], np.asarray(kernel.want, result.outputs[0].dtype))


@pytest.mark.parametrize("mutant", FAULT_MUTANTS, ids=lambda mutant: f"{mutant.fault}: {mutant.name}")
def test_a_mutant_is_killed(mutant: FaultMutant) -> None:
    found = mutant.faults()
    assert mutant.fault in {fault.kind for fault in found}, found


def test_every_class_has_a_mutant() -> None:
    assert {mutant.fault for mutant in FAULT_MUTANTS} == CLASSES.keys()


def test_relaxed_dispatches_allow_lanes_that_have_ended() -> None:
    (mutant,) = (mutant for mutant in FAULT_MUTANTS if mutant.name == "simd_sum in half of the lanes")
    with default_options(RunOptions(relaxed=True)):
        result = run(SUMMED, mutant.source)
    assert result.faults == []
    numbers = np.arange(N, dtype=np.float32) + 1
    want = numbers.reshape(4, 32)[:, :16].sum(1, keepdims=True) * (np.arange(32) < 16) + np.arange(32)
    assert np.array_equal(result.outputs[0], want.reshape(-1))


def test_more_threads_than_a_group_has_are_a_fault() -> None:
    assert [fault.kind for fault in run(SUMMED, SUMMED.source, 2048).faults] == ["limit"]


def test_more_buffers_than_metal_has_are_a_fault() -> None:
    names = [f"x{i}" for i in range(31)]
    source = "uint i = thread_position_in_grid.x; y[i] = " + " + ".join(f"{name}[i]" for name in names) + ";"
    kernel = mx.fast.metal_kernel("many", names, ["y"], source)
    arguments: dict[str, Any] = {"inputs": [mx.ones(32)] * 31, "grid": (32, 1, 1), "threadgroup": (32, 1, 1)}
    arguments |= {"output_shapes": [(32,)], "output_dtypes": [mx.float32]}
    faults = run_orders(captured(kernel, arguments), arguments).faults
    assert [str(fault) for fault in faults] == ["limit: 32 buffers, of 31"]


def test_an_uninitialised_local_does_not_compile() -> None:
    source = SUMMED.source.replace("float total = simd_sum(part);", "float total; if (part > 3.0f) total = part;")
    with pytest.raises(CompileError, match="uninitialized"):
        run(SUMMED, source)

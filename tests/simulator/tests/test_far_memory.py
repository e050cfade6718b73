"""Inputs whose last elements lie beyond 2^32 bytes, and compilers' own sanitizers.

Slow: macllm's kernels, and the sanitizers.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops.metal import KernelCall, options
from macllm.ops.metal.attention import flash, kv_decode
from tests.simulator.mutants import mutations
from tests.simulator.run import Result, RunOptions, default_options, run_text
from tests.simulator.text import captured

BEYOND = 2**32 + 4096
NO_RESERVE = 0x4000  # untouched memory takes no space


def far(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The same numbers in a view with a stride of `BEYOND` bytes along an axis."""
    near = np.ascontiguousarray(values[(slice(None),) * axis + (0,)])
    size = BEYOND * (values.shape[axis] - 1) + near.nbytes
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    strides = list(near.strides)
    strides.insert(axis, BEYOND)
    view = np.ndarray(values.shape, values.dtype, memory, strides=strides)
    view[...] = values
    return view


def run(call: KernelCall, views: Mapping[str, np.ndarray], how: RunOptions) -> Result:
    """A call's dispatch with other views of the same inputs."""
    text = captured(mx.fast.metal_kernel(**options(call)), call.arguments)
    inputs = [views.get(name, value) for name, value in call.inputs.items()]
    return run_text(text, {**call.arguments, "inputs": inputs}, how)


def rows_of(index: str, x: np.ndarray, how: RunOptions) -> Result:
    """The sums of two rows far apart, by a kernel with this index."""
    source = f"""
        uint row = thread_position_in_grid.y, i = thread_position_in_grid.x;
        y[row * 32 + i] = x[{index}] + 1.0f;
    """
    kernel = mx.fast.metal_kernel("rows", ["x"], ["y"], source, ensure_row_contiguous=False)
    arguments: dict[str, Any] = {"inputs": [mx.zeros(x.shape)], "grid": (32, 2, 1), "threadgroup": (32, 1, 1)}
    arguments |= {"output_shapes": [(2, 32)], "output_dtypes": [mx.float32]}
    return run_text(captured(kernel, arguments), {**arguments, "inputs": [x]}, how)


ROWS = np.arange(64, dtype=np.float32).reshape(2, 32)


def test_an_index_of_64_bits_reaches_beyond_four_gigabytes() -> None:
    result = rows_of("row * x_strides[0] + i", far(ROWS), RunOptions())
    assert result.faults == []
    assert np.array_equal(result.outputs[0], ROWS + 1)


@pytest.mark.parametrize("index", ["row * uint(x_strides[0] * 4) / 4 + i", "uint(row * x_strides[0] * 4) / 4 + i"])
def test_an_index_of_32_bits_is_caught(index: str) -> None:
    kinds = {fault.kind for fault in rows_of(index, far(ROWS), RunOptions()).faults}
    assert kinds & {"stale-view", "out-of-bounds"}


@pytest.mark.slow
def test_overflow_of_a_signed_index_is_caught_by_the_sanitizer() -> None:
    faults = rows_of("int(row) * int(x_strides[0]) * 4 / 4 + int(i)", far(ROWS), RunOptions("sanitized")).faults
    assert {fault.kind for fault in faults} <= {"undefined", "address", "out-of-bounds"}
    assert faults


def random(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("family", ["kv_decode", "flash"])
def test_caches_beyond_four_gigabytes_are_read_correctly(family: str, axis: int) -> None:
    q = mx.array(random(2, 4, 3, 8, seed=0))
    parts = {"keys": random(2, 2, 5, 8, seed=1), "values": random(2, 2, 5, 8, seed=2)}
    arrays = {name: mx.array(one) for name, one in parts.items()}
    if family == "flash":
        call = flash.forward(q, arrays, flash.FlashParams(0.4, True, mx.array([0])))
    else:
        call = kv_decode.decode(q, arrays, kv_decode.DecodeParams(0.4, True, mx.array([0])))
    near = run(call, parts, RunOptions())
    result = run(call, {name: far(one, axis) for name, one in parts.items()}, RunOptions())
    assert result.faults == near.faults == []
    assert [x.tobytes() for x in result.outputs] == [x.tobytes() for x in near.outputs]


SEEN_BY_SANITIZERS = {
    "a read past the end": "address",
    "a write past the end": "address",
    "a pointer past a threadgroup array": "address",
    "strides are not read": "address",
    "a shift by more than the width": "undefined",
    "an index past a lane's array": "undefined",
    "an index past a threadgroup array": "undefined",
    "a misaligned vector": "undefined",
}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "kind"), SEEN_BY_SANITIZERS.items())
def test_the_compilers_sanitizers_kill_the_mutant(what: str, kind: str) -> None:
    (mutant,) = (mutant for mutant in mutations.FAULT_MUTANTS if mutant.name == what)
    with default_options(RunOptions("sanitized")):
        assert mutations.run(mutant.kernel, mutant.kernel.source).faults == []
        faults = [fault for fault in mutant.faults() if fault.kind != "front"]
    assert kind in {fault.kind for fault in faults}, faults
    assert any(fault.line.startswith("kernel.metal:") for fault in faults)

"""Bugs of every kind, each put into a kernel that has none: the simulator must see the one and let the other pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from tests.simulator.compile import CompileError
from tests.simulator.run import Result, run_orders
from tests.simulator.text import captured

N = 128
NUMBERS = mx.arange(N, dtype=mx.float32) + 1


class Kernel(NamedTuple):
    """A kernel without a bug, and what it computes of x."""

    source: str
    want: Any
    x: mx.array = NUMBERS
    shape: tuple[int, ...] = (N,)
    dtype: mx.Dtype = mx.float32
    header: str = ""
    options: dict[str, Any] = {}  # noqa: RUF012  # of a frozen tuple


def run(kernel: Kernel, source: str, threadgroup: int = 64) -> Result:
    made = mx.fast.metal_kernel(
        name="kernel",
        input_names=["x"],
        output_names=["y"],
        header=kernel.header,
        source=source,
        ensure_row_contiguous=False,
        **kernel.options,
    )
    arguments: dict[str, Any] = {
        "inputs": [kernel.x],
        "grid": (max(N, threadgroup), 1, 1),
        "threadgroup": (threadgroup, 1, 1),
        "output_shapes": [kernel.shape],
        "output_dtypes": [kernel.dtype],
    }
    if kernel.options:
        arguments["init_value"] = 0
    return run_orders(captured(made, arguments), arguments)


TURNED = Kernel(
    """
    threadgroup float held[64];
    uint i = thread_position_in_threadgroup.x;
    uint n = thread_position_in_grid.x;
    float own[2] = {x[n], 0.0f};
    held[i] = own[0];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[n] = held[63 - i];
    """,
    np.arange(N, dtype=np.float32).reshape(2, 64)[:, ::-1].reshape(-1) + 1,
)
NEIGHBOUR = Kernel(
    """
    threadgroup float held[64];
    uint i = thread_position_in_threadgroup.x;
    held[i] = x[thread_position_in_grid.x];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[thread_position_in_grid.x] = held[i ^ 1];
    """,
    (np.arange(N) ^ 1) + 1,
)
DEVICE = Kernel(
    """
    uint n = thread_position_in_grid.x;
    y[n] = x[n];
    threadgroup_barrier(mem_flags::mem_device);
    float other = y[n ^ 32];
    y[N + n] = other;
    """.replace("N", str(N)),
    np.concatenate([np.arange(N), np.arange(N) ^ 32]) + 1,
    shape=(2 * N,),
)
SUMMED = Kernel(
    """
    uint lane = thread_index_in_simdgroup;
    float part = x[thread_position_in_grid.x];
    float total = simd_sum(part);
    y[thread_position_in_grid.x] = total + float(lane);
    """,
    (np.arange(N, dtype=np.float32) + 1).reshape(4, 32).sum(1).repeat(32) + np.tile(np.arange(32), 4),
)
COUNTED = Kernel(
    "atomic_fetch_add_explicit(&y[0], uint(x[thread_position_in_grid.x]), memory_order_relaxed);",
    [N * (N + 1) // 2],
    shape=(1,),
    dtype=mx.uint32,
    options={"atomic_outputs": True},
)
MULTIPLIED = Kernel(
    """
    uint lane = thread_index_in_simdgroup;
    simdgroup_matrix<float, 8, 8> a, b;
    uint group = thread_position_in_grid.x / 32;
    simdgroup_load(a, x + (group & 1) * 64, 8);
    simdgroup_multiply(b, a, a);
    if (group < 2) simdgroup_store(b, y + group * 64, 8);
    """,
    np.concatenate([(m @ m).reshape(-1) for m in (np.arange(N, dtype=np.float32) + 1).reshape(2, 8, 8)]),
)
VIEW = Kernel(
    "y[thread_position_in_grid.x] = x[thread_position_in_grid.x * x_strides[0]];",
    np.arange(N) * 2.0,
    x=mx.arange(2 * N, dtype=mx.float32)[::2],
)

BUGS = [
    ("race", "no barrier", TURNED, "threadgroup_barrier(mem_flags::mem_threadgroup);", ""),
    ("race", "a barrier that orders nothing", TURNED, "mem_threadgroup", "mem_none"),
    ("race", "a barrier for other memory", TURNED, "mem_threadgroup", "mem_device"),
    ("race", "a simdgroup's barrier between simdgroups", TURNED, "threadgroup_barrier", "simdgroup_barrier"),
    ("race", "lanes of a simdgroup without a barrier", NEIGHBOUR, "simdgroup_barrier(mem_flags::mem_threadgroup);", ""),
    ("race", "device memory behind a barrier for a threadgroup's", DEVICE, "mem_device", "mem_threadgroup"),
    ("race", "threadgroups in device memory", DEVICE, "n ^ 32", "n ^ 64"),
    ("race", "counting without atomics", DEVICE, "y[n] = x[n];", "y[n] = x[n]; y[0] += 1.0f;"),
    (
        "race",
        "two lanes write the same number",
        SUMMED,
        "y[thread_position_in_grid.x]",
        "y[thread_position_in_grid.x / 2]",
    ),
    ("out-of-bounds", "one after the end", TURNED, "x[n]", "x[n + 1]"),
    ("out-of-bounds", "one before the beginning", TURNED, "x[n]", "x[int(n) - 1]"),
    ("out-of-bounds", "a write after the end", TURNED, "y[n] =", "y[n + 1] ="),
    ("out-of-bounds", "a threadgroup's array", TURNED, "held[63 - i]", "*(held + 64 - i)"),
    ("out-of-bounds", "far away", TURNED, "x[n]", "x[n + 100000000]"),
    ("stale-view", "strides are not read", VIEW, " * x_strides[0]", ""),
    ("uninitialised", "threadgroup memory that nobody wrote", TURNED, "held[i] =", "if (i != 7) held[i] ="),
    ("uninitialised", "device memory that nobody wrote", DEVICE, "y[n] = x[n];", "if (n != 7) y[n] = x[n];"),
    (
        "divergent-simd",
        "half of the lanes",
        SUMMED,
        "float total = simd_sum(part);",
        "float total = 0.0f; if (lane < 16) total = simd_sum(part);",
    ),
    (
        "divergent-simd",
        "as often as each likes",
        SUMMED,
        "float total = simd_sum(part);",
        "float total = 0.0f; for (uint k = 0; k < lane; k++) total += simd_sum(part);",
    ),
    (
        "divergent-simd",
        "two ways",
        SUMMED,
        "float total = simd_sum(part);",
        "float total;\nif (lane < 16) total = simd_sum(part);\nelse total = simd_max(part);",
    ),
    (
        "divergent-simd",
        "a matrix for some",
        MULTIPLIED,
        "simdgroup_multiply(b, a, a);",
        "b = a; if (lane != 3) simdgroup_multiply(b, a, a);",
    ),
    ("divergent-barrier", "a simdgroup stays away", TURNED, "threadgroup_barrier", "if (i < 32) threadgroup_barrier"),
    (
        "divergent-barrier",
        "a lane has gone",
        TURNED,
        "threadgroup_barrier",
        "if (i == 63) return;\nthreadgroup_barrier",
    ),
    ("unwritten", "an element", TURNED, "y[n] =", "if (n != 100) y[n] ="),
    ("written-twice", "an element", TURNED, "y[n] =", "y[n] = 0.0f; y[n] ="),
    (
        "schedule-dependent",
        "who comes first",
        COUNTED,
        "uint(x[thread_position_in_grid.x])",
        "uint(x[thread_position_in_grid.x]) * 0 + 1 + uint(atomic_load_explicit(&y[0], memory_order_relaxed) * thread_position_in_grid.x % 3)",
    ),
    (
        "lane-map",
        "lanes by heart",
        MULTIPLIED,
        "simdgroup_multiply(b, a, a);",
        "simdgroup_multiply(b, a, a); if (lane == 4) b.thread_elements()[0] += 1.0f;",
    ),
    (
        "undefined",
        "four numbers at a third",
        TURNED,
        "held[i] = own[0];",
        "held[i] = (*(const device float4*)(x + min(n, 124u))).x;",
    ),
    ("undefined", "a shift by more than there is", TURNED, "held[63 - i]", "held[63 - i] + float(1u << (n + 1))"),
    ("undefined", "an index after a lane's own array", TURNED, "held[63 - i]", "held[63 - i] + own[n]"),
    ("undefined", "an index after a threadgroup's array", TURNED, "held[63 - i]", "held[64 - i]"),
    (
        "limit",
        "more variables than a stack holds",
        TURNED,
        "held[i] = own[0];",
        "float large[80000];\nfor (uint k = 0; k < 80000; k++) large[k] = x[k % 128];\nheld[i] = large[n];",
    ),
    ("limit", "too much threadgroup memory", TURNED, "held[64]", "held[8193]"),
]


@pytest.mark.parametrize("kernel", [TURNED, NEIGHBOUR, DEVICE, SUMMED, COUNTED, MULTIPLIED, VIEW])
def test_a_kernel_without_a_bug_passes(kernel: Kernel) -> None:
    result = run(kernel, kernel.source)
    assert result.faults == []
    assert np.array_equal(result.outputs[0], np.asarray(kernel.want, result.outputs[0].dtype))


@pytest.mark.parametrize(("kind", "bug", "kernel", "part", "other"), BUGS, ids=[f"{b[0]}: {b[1]}" for b in BUGS])
def test_a_planted_bug_is_seen(kind: str, bug: str, kernel: Kernel, part: str, other: str) -> None:
    assert part in kernel.source
    faults = run(kernel, kernel.source.replace(part, other)).faults
    assert kind in {fault.kind for fault in faults}, f"{bug}: {faults}"


def test_more_threads_than_a_group_has_are_a_fault() -> None:
    assert [fault.kind for fault in run(SUMMED, SUMMED.source, 2048).faults] == ["limit"]


def test_a_local_that_nobody_set_does_not_compile() -> None:
    source = SUMMED.source.replace("float total = simd_sum(part);", "float total; if (part > 3.0f) total = part;")
    with pytest.raises(CompileError, match="uninitialized"):
        run(SUMMED, source)

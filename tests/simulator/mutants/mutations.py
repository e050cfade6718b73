"""Correct kernels and mutants of every fault class: `python -m tests.simulator.mutants.mutations`.

Runs them all and prints a table of what each one is caught by. Ends with 1 if one is not caught.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..run import Fault, Result, run_orders
from ..text import captured

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

WITHOUT_BUGS = (TURNED, NEIGHBOUR, DEVICE, SUMMED, COUNTED, MULTIPLIED, VIEW)


class Bug(NamedTuple):
    """A part of a kernel that something else is put in for: what the fault is called, and what is wrong."""

    fault: str
    what: str
    kernel: Kernel
    part: str
    other: str

    @property
    def source(self) -> str:
        """The kernel with the bug."""
        assert self.part in self.kernel.source
        return self.kernel.source.replace(self.part, self.other)

    def found(self) -> list[Fault]:
        """The simulator's faults. Raises: CompileError."""
        return run(self.kernel, self.source).faults


BUGS = [
    Bug("race", "no barrier", TURNED, "threadgroup_barrier(mem_flags::mem_threadgroup);", ""),
    Bug("race", "a barrier that orders nothing", TURNED, "mem_threadgroup", "mem_none"),
    Bug("race", "a barrier for other memory", TURNED, "mem_threadgroup", "mem_device"),
    Bug("race", "a simdgroup's barrier between simdgroups", TURNED, "threadgroup_barrier", "simdgroup_barrier"),
    Bug(
        "race",
        "lanes of a simdgroup without a barrier",
        NEIGHBOUR,
        "simdgroup_barrier(mem_flags::mem_threadgroup);",
        "",
    ),
    Bug("race", "device memory behind a barrier for a threadgroup's", DEVICE, "mem_device", "mem_threadgroup"),
    Bug("race", "threadgroups in device memory", DEVICE, "n ^ 32", "n ^ 64"),
    Bug("race", "counting without atomics", DEVICE, "y[n] = x[n];", "y[n] = x[n]; y[0] += 1.0f;"),
    Bug(
        "race",
        "two lanes write the same number",
        SUMMED,
        "y[thread_position_in_grid.x]",
        "y[thread_position_in_grid.x / 2]",
    ),
    Bug("out-of-bounds", "one after the end", TURNED, "x[n]", "x[n + 1]"),
    Bug("out-of-bounds", "one before the beginning", TURNED, "x[n]", "x[int(n) - 1]"),
    Bug("out-of-bounds", "a write after the end", TURNED, "y[n] =", "y[n + 1] ="),
    Bug("out-of-bounds", "a threadgroup's array", TURNED, "held[63 - i]", "*(held + 64 - i)"),
    Bug("out-of-bounds", "far away", TURNED, "x[n]", "x[n + 100000000]"),
    Bug("stale-view", "strides are not read", VIEW, " * x_strides[0]", ""),
    Bug("uninitialised", "threadgroup memory that nobody wrote", TURNED, "held[i] =", "if (i != 7) held[i] ="),
    Bug("uninitialised", "device memory that nobody wrote", DEVICE, "y[n] = x[n];", "if (n != 7) y[n] = x[n];"),
    Bug(
        "divergent-simd",
        "half of the lanes",
        SUMMED,
        "float total = simd_sum(part);",
        "float total = 0.0f; if (lane < 16) total = simd_sum(part);",
    ),
    Bug(
        "divergent-simd",
        "as often as each likes",
        SUMMED,
        "float total = simd_sum(part);",
        "float total = 0.0f; for (uint k = 0; k < lane; k++) total += simd_sum(part);",
    ),
    Bug(
        "divergent-simd",
        "two ways",
        SUMMED,
        "float total = simd_sum(part);",
        "float total;\nif (lane < 16) total = simd_sum(part);\nelse total = simd_max(part);",
    ),
    Bug(
        "divergent-simd",
        "a matrix for some",
        MULTIPLIED,
        "simdgroup_multiply(b, a, a);",
        "b = a; if (lane != 3) simdgroup_multiply(b, a, a);",
    ),
    Bug(
        "divergent-barrier", "a simdgroup stays away", TURNED, "threadgroup_barrier", "if (i < 32) threadgroup_barrier"
    ),
    Bug(
        "divergent-barrier",
        "a lane has gone",
        TURNED,
        "threadgroup_barrier",
        "if (i == 63) return;\nthreadgroup_barrier",
    ),
    Bug("unwritten", "an element", TURNED, "y[n] =", "if (n != 100) y[n] ="),
    Bug("written-twice", "an element", TURNED, "y[n] =", "y[n] = 0.0f; y[n] ="),
    Bug(
        "schedule-dependent",
        "who comes first",
        COUNTED,
        "uint(x[thread_position_in_grid.x])",
        "uint(1 + atomic_load_explicit(&y[0], memory_order_relaxed) * thread_position_in_grid.x % 3)",
    ),
    Bug(
        "lane-map",
        "lanes by heart",
        MULTIPLIED,
        "simdgroup_multiply(b, a, a);",
        "simdgroup_multiply(b, a, a); if (lane == 4) b.thread_elements()[0] += 1.0f;",
    ),
    Bug(
        "undefined",
        "four numbers at a third",
        TURNED,
        "held[i] = own[0];",
        "held[i] = (*(const device float4*)(x + min(n, 124u))).x;",
    ),
    Bug("undefined", "a shift by more than there is", TURNED, "held[63 - i]", "held[63 - i] + float(1u << (n + 1))"),
    Bug("undefined", "an index after a lane's own array", TURNED, "held[63 - i]", "held[63 - i] + own[n]"),
    Bug("undefined", "an index after a threadgroup's array", TURNED, "held[63 - i]", "held[64 - i]"),
    Bug(
        "limit",
        "more variables than a stack holds",
        TURNED,
        "held[i] = own[0];",
        "float large[80000];\nfor (uint k = 0; k < 80000; k++) large[k] = x[k % 128];\nheld[i] = large[n];",
    ),
    Bug("limit", "too much threadgroup memory", TURNED, "held[64]", "held[8193]"),
]


CLASSES = {
    "race": "memory that lanes touch in no order",
    "out-of-bounds": "memory that is in no buffer",
    "stale-view": "memory behind a view that the view does not show",
    "uninitialised": "memory that nobody has written",
    "divergent-simd": "lanes that do not do together what a simdgroup does",
    "divergent-barrier": "lanes that do not come to a barrier",
    "unwritten": "an output that is not written",
    "written-twice": "an output that is written again",
    "schedule-dependent": "results that go by who comes first",
    "lane-map": "a matrix whose lanes are known by heart",
    "undefined": "what the language gives no meaning",
    "limit": "more than the GPU has",
}
"""Classes of bugs, by the fault that they are caught by."""


def main() -> int:
    """Put each bug into its kernel, and print what is said of it."""
    missed = 0
    print("| Class | Mutant | Killed by |")
    print("|---|---|---|")
    for bug in BUGS:
        kinds = sorted({fault.kind for fault in bug.found()})
        missed += bug.fault not in kinds
        print(f"| {CLASSES[bug.fault]} | {bug.what} | {', '.join(kinds) or '**nothing**'} |")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Correct kernels and mutants of every fault class: `python -m tests.simulator.mutants.mutations`.

Runs them all and prints a table of the faults that kill each mutant. Ends with 1 if one survives.
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
    """A correct kernel, and its result for x."""

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

CORRECT = (TURNED, NEIGHBOUR, DEVICE, SUMMED, COUNTED, MULTIPLIED, VIEW)


class FaultMutant(NamedTuple):
    """A mutant of a kernel: `old` replaced by `new`, and the fault that must kill it."""

    fault: str
    name: str
    kernel: Kernel
    old: str
    new: str

    @property
    def source(self) -> str:
        """The mutant's source."""
        assert self.old in self.kernel.source
        return self.kernel.source.replace(self.old, self.new)

    def faults(self) -> list[Fault]:
        """The simulator's faults. Raises: CompileError."""
        return run(self.kernel, self.source).faults


FAULT_MUTANTS = [
    FaultMutant("race", "no barrier", TURNED, "threadgroup_barrier(mem_flags::mem_threadgroup);", ""),
    FaultMutant("race", "a barrier without memory flags", TURNED, "mem_threadgroup", "mem_none"),
    FaultMutant("race", "a barrier for other memory", TURNED, "mem_threadgroup", "mem_device"),
    FaultMutant("race", "a simdgroup's barrier between simdgroups", TURNED, "threadgroup_barrier", "simdgroup_barrier"),
    FaultMutant(
        "race",
        "lanes of a simdgroup without a barrier",
        NEIGHBOUR,
        "simdgroup_barrier(mem_flags::mem_threadgroup);",
        "",
    ),
    FaultMutant("race", "a threadgroup barrier for device memory", DEVICE, "mem_device", "mem_threadgroup"),
    FaultMutant("race", "no order between threadgroups", DEVICE, "n ^ 32", "n ^ 64"),
    FaultMutant("race", "counting without atomics", DEVICE, "y[n] = x[n];", "y[n] = x[n]; y[0] += 1.0f;"),
    FaultMutant(
        "race",
        "two lanes write the same number",
        SUMMED,
        "y[thread_position_in_grid.x]",
        "y[thread_position_in_grid.x / 2]",
    ),
    FaultMutant("out-of-bounds", "a read past the end", TURNED, "x[n]", "x[n + 1]"),
    FaultMutant("out-of-bounds", "a read before the beginning", TURNED, "x[n]", "x[int(n) - 1]"),
    FaultMutant("out-of-bounds", "a write past the end", TURNED, "y[n] =", "y[n + 1] ="),
    FaultMutant("out-of-bounds", "a pointer past a threadgroup array", TURNED, "held[63 - i]", "*(held + 64 - i)"),
    FaultMutant("out-of-bounds", "a read far past the end", TURNED, "x[n]", "x[n + 100000000]"),
    FaultMutant("stale-view", "strides are not read", VIEW, " * x_strides[0]", ""),
    FaultMutant("uninitialised", "unwritten threadgroup memory", TURNED, "held[i] =", "if (i != 7) held[i] ="),
    FaultMutant("uninitialised", "unwritten device memory", DEVICE, "y[n] = x[n];", "if (n != 7) y[n] = x[n];"),
    FaultMutant(
        "divergent-simd",
        "simd_sum in half of the lanes",
        SUMMED,
        "float total = simd_sum(part);",
        "float total = 0.0f; if (lane < 16) total = simd_sum(part);",
    ),
    FaultMutant(
        "divergent-simd",
        "simd_sum a different number of times per lane",
        SUMMED,
        "float total = simd_sum(part);",
        "float total = 0.0f; for (uint k = 0; k < lane; k++) total += simd_sum(part);",
    ),
    FaultMutant(
        "divergent-simd",
        "different operations in each half",
        SUMMED,
        "float total = simd_sum(part);",
        "float total;\nif (lane < 16) total = simd_sum(part);\nelse total = simd_max(part);",
    ),
    FaultMutant(
        "divergent-simd",
        "a matrix product without one lane",
        MULTIPLIED,
        "simdgroup_multiply(b, a, a);",
        "b = a; if (lane != 3) simdgroup_multiply(b, a, a);",
    ),
    FaultMutant(
        "divergent-barrier",
        "a simdgroup without the barrier",
        TURNED,
        "threadgroup_barrier",
        "if (i < 32) threadgroup_barrier",
    ),
    FaultMutant(
        "divergent-barrier",
        "a return before the barrier",
        TURNED,
        "threadgroup_barrier",
        "if (i == 63) return;\nthreadgroup_barrier",
    ),
    FaultMutant("unwritten", "an element is skipped", TURNED, "y[n] =", "if (n != 100) y[n] ="),
    FaultMutant("written-twice", "an element is written twice", TURNED, "y[n] =", "y[n] = 0.0f; y[n] ="),
    FaultMutant(
        "schedule-dependent",
        "a value read from an atomic counter",
        COUNTED,
        "uint(x[thread_position_in_grid.x])",
        "uint(1 + atomic_load_explicit(&y[0], memory_order_relaxed) * thread_position_in_grid.x % 3)",
    ),
    FaultMutant(
        "lane-map",
        "a hard-coded lane",
        MULTIPLIED,
        "simdgroup_multiply(b, a, a);",
        "simdgroup_multiply(b, a, a); if (lane == 4) b.thread_elements()[0] += 1.0f;",
    ),
    FaultMutant(
        "undefined",
        "a misaligned vector",
        TURNED,
        "held[i] = own[0];",
        "held[i] = (*(const device float4*)(x + min(n, 124u))).x;",
    ),
    FaultMutant(
        "undefined", "a shift by more than the width", TURNED, "held[63 - i]", "held[63 - i] + float(1u << (n + 1))"
    ),
    FaultMutant("undefined", "an index past a lane's array", TURNED, "held[63 - i]", "held[63 - i] + own[n]"),
    FaultMutant("undefined", "an index past a threadgroup array", TURNED, "held[63 - i]", "held[64 - i]"),
    FaultMutant(
        "limit",
        "more variables than the stack holds",
        TURNED,
        "held[i] = own[0];",
        "float large[80000];\nfor (uint k = 0; k < 80000; k++) large[k] = x[k % 128];\nheld[i] = large[n];",
    ),
    FaultMutant("limit", "too much threadgroup memory", TURNED, "held[64]", "held[8193]"),
]


CLASSES = {
    "race": "unordered access to shared memory",
    "out-of-bounds": "access outside of a buffer",
    "stale-view": "access to memory that a view skips",
    "uninitialised": "read of uninitialised memory",
    "divergent-simd": "simdgroup operation that lanes skip",
    "divergent-barrier": "barrier that lanes skip",
    "unwritten": "output that is not written",
    "written-twice": "output that is written twice",
    "schedule-dependent": "result that depends on the schedule",
    "lane-map": "hard-coded lanes of a matrix",
    "undefined": "undefined behaviour",
    "limit": "limit of the GPU exceeded",
}
"""Classes of mutants, by the fault that kills them."""


def main() -> int:
    """Run every mutant, and print a table of the faults that kill it."""
    survivors = 0
    print("| Class | Mutant | Killed by |")
    print("|---|---|---|")
    for mutant in FAULT_MUTANTS:
        kinds = sorted({fault.kind for fault in mutant.faults()})
        survivors += mutant.fault not in kinds
        print(f"| {CLASSES[mutant.fault]} | {mutant.name} | {', '.join(kinds) or '**nothing**'} |")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())

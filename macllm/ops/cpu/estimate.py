"""Estimate of which answers sooner: MLX's own operations, or kernels yet to be compiled.

The rates are of one core of a server of 2021 or later; a rate that is off by half moves the size of model that waits
by half, which costs nobody more than the compilation itself.
"""

from __future__ import annotations

import os

PROMPT_TOKENS = 64
ANSWER_TOKENS = 64
COMPILE_SECONDS = 90.0  # of processor time, for all files
READ_BYTES = 8e9  # a second, of float32 weights by OpenBLAS with one row
MULTIPLIED = 30e9  # operations a second and core, by OpenBLAS with many rows
MULTIPLIED_PLAINLY = 1.5e9  # operations a second by the BLAS of MLX's own wheel, on one core
MULTIPLIED_PACKED = 1e9  # operations a second of MLX's products with packed weights, on one core
MOST_MEMORY = 0.5  # of the machine's, for weights in float32 that kernels would leave in 16 bits


def answer_seconds(floats: int, packed: int, *, cores: int, openblas: bool) -> float:
    """Seconds of a short answer by MLX's operations, for counts of float and packed parameters."""
    tokens = PROMPT_TOKENS + ANSWER_TOKENS
    seconds = tokens * 2 * packed / MULTIPLIED_PACKED
    if not openblas:
        return seconds + tokens * 2 * floats / MULTIPLIED_PLAINLY
    return seconds + ANSWER_TOKENS * 4 * floats / READ_BYTES + PROMPT_TOKENS * 2 * floats / (MULTIPLIED * cores)


def compile_seconds(missing: int, total: int, *, cores: int) -> float:
    """Seconds that the files take which are missing of all that make the kernels."""
    return COMPILE_SECONDS * missing / total / cores


def fits(floats: int) -> bool:
    """The machine has room for so many parameters in float32."""
    return 4 * floats <= MOST_MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

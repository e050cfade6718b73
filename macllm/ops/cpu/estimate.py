"""Estimate of the faster first answer: MLX's operations now, or kernels after their compilation.

The rates are those of one core of a server of 2021 or later. If a rate is off by half, so is the model size from which
loading waits for the compilation, which costs at most the compilation.
"""

from __future__ import annotations

import os

PROMPT_TOKENS = 64
ANSWER_TOKENS = 64
COMPILE_SECONDS = 90.0  # of processor time, for all files
READ_BYTES = 8e9  # per second, of float32 weights by OpenBLAS with one row
OPENBLAS_OPERATIONS = 30e9  # per second and core, by OpenBLAS with many rows
PLAIN_OPERATIONS = 1.5e9  # per second by the BLAS of MLX's wheel, on one core
PACKED_OPERATIONS = 1e9  # per second by MLX's products with packed weights, on one core
MOST_MEMORY = 0.5  # share of the machine's memory for float32 weights that kernels would leave in 16 bits


def answer_seconds(floats: int, packed: int, *, cores: int, openblas: bool) -> float:
    """Seconds of a short answer by MLX's operations, for counts of float and packed parameters."""
    tokens = PROMPT_TOKENS + ANSWER_TOKENS
    seconds = tokens * 2 * packed / PACKED_OPERATIONS
    if not openblas:
        return seconds + tokens * 2 * floats / PLAIN_OPERATIONS
    prompt_seconds = PROMPT_TOKENS * 2 * floats / (OPENBLAS_OPERATIONS * cores)
    return seconds + ANSWER_TOKENS * 4 * floats / READ_BYTES + prompt_seconds


def compile_seconds(missing: int, total: int, *, cores: int) -> float:
    """Seconds to compile `missing` of the kernels' `total` files."""
    return COMPILE_SECONDS * missing / total / cores


def fits(floats: int) -> bool:
    """True if so many float32 parameters fit into the machine's memory."""
    return 4 * floats <= MOST_MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

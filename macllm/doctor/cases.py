"""Test cases of all kernels; shapes of real models are timed."""

from __future__ import annotations

from collections.abc import Iterator

from macllm.ops.metal import DTYPES

from . import cases_attention, cases_heads, cases_linear_attention, cases_matmul
from .case import Case


def cases() -> Iterator[Case]:
    """All cases, by type; each makes its arrays when it runs."""
    for dtype in DTYPES:
        for family in (cases_heads, cases_attention, cases_matmul, cases_linear_attention):
            yield from family.cases(dtype)

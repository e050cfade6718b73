"""Bounds of the memory that MLX keeps for its next arrays."""

from __future__ import annotations

import mlx.core as mx

_LEAST_BYTES = 1 << 28


class Buffers:
    """During a run, arrays and free buffers together take at most the peak of the arrays so far.

    Without a bound free buffers add up over rows of all lengths. With a much lower one, each step gives most of its
    buffers back to the system, and gets others that the system has to clear first.
    """

    def __init__(self) -> None:
        self._cache = mx.set_cache_limit(_LEAST_BYTES)
        self._memory: int | None = None
        mx.reset_peak_memory()

    def fit(self) -> None:
        """Adapt the bounds to the peak so far."""
        most = max(mx.get_peak_memory(), _LEAST_BYTES)
        mx.set_cache_limit(most)
        before = mx.set_memory_limit(most)
        self._memory = before if self._memory is None else self._memory

    def release(self) -> None:
        """Restore the limits from before the run."""
        mx.set_cache_limit(self._cache)
        if self._memory is not None:
            mx.set_memory_limit(self._memory)

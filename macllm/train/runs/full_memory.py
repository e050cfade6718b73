"""A run whose memory was full: how that is seen, and the settings with which it goes on in less."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from typing import Any

from macllm.child import Exit
from macllm.hub.fit import machine_memory
from macllm.units import bytes_text

from ..config import TrainConfig

# Errors of MLX on a CPU and on Metal, of numpy and of C++.
_REFUSED = re.compile(r"Insufficient Memory|ErrorOutOfMemory|\b(?:Unable|Attempting) to allocate \d|\bbad_alloc\b")
_NEARLY_ALL = 0.8  # of the machine's memory; a killed process that held less may have been killed for another reason
_END_BYTES = 4096  # of a log, with the last words of a process


def refused(error: BaseException) -> str | None:
    """The line of an error about memory that was not there; None for another error."""
    lines = [line for line in str(error).splitlines() if _REFUSED.search(line)]
    if lines or isinstance(error, MemoryError):
        return lines[0] if lines else str(error) or "no memory is left"
    return None


def seen(end: Exit, peak_bytes: int) -> str | None:
    """The sign of full memory in the end of a process with this peak of MLX's memory; None without one."""
    peak, machine = max(end.peak_bytes, peak_bytes), machine_memory()
    if end.code == -signal.SIGKILL and peak >= _NEARLY_ALL * machine:
        return (
            f"its process was killed by SIGKILL, with {bytes_text(peak)} in the {bytes_text(machine)} of this machine"
        )
    with suppress(OSError):
        if end.log is not None:
            last = end.log.read_bytes()[-_END_BYTES:].decode("utf-8", "replace")
            return next((line for line in last.splitlines() if _REFUSED.search(line)), None)
    return None


def reduced(config: TrainConfig, recomputes: bool) -> dict[str, tuple[Any, Any]]:
    """Settings before and after, with which a step of the same rows takes less memory; empty without any.

    The micro-batch is halved; at one row, layers are computed again if the model `recomputes` and the user set nothing.
    """
    if half := half_batch(config):
        count = config.grad_accumulation_steps
        rows = config.batch_size * count
        return {"batch_size": (config.batch_size, half), "grad_accumulation_steps": (count, rows // half)}
    if config.grad_checkpoint is None and recomputes:
        return {"grad_checkpoint": (False, True)}
    return {}


def half_batch(config: TrainConfig) -> int:
    """The largest micro-batch of at most half the rows that divides the rows of a step; 0 for one row."""
    rows = config.batch_size * config.grad_accumulation_steps
    return max((size for size in range(1, config.batch_size // 2 + 1) if rows % size == 0), default=0)

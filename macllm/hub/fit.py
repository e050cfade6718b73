"""Memory that a model needs, and the context that fits into this machine's memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .shape import ModelShape

# MLX's buffers, the activations of one chunk of a prompt with its logits, and the process itself.
OVERHEAD_BYTES = 500_000_000
# Share of a Mac's memory that its GPU may use, if neither the system nor an engine has said: what macOS allows on
# machines with up to 36 GB; larger ones may use three quarters.
_GPU_SHARE = 2 / 3


@dataclass(frozen=True)
class Fit:
    """Tokens of context that fit beside the weights; `over_bytes` are missing for the weights.

    `tokens` is None if the size of the cache is not known. `whole` means the model's whole context fits.
    """

    tokens: int | None
    over_bytes: int = 0
    whole: bool = False


def fit(weights_bytes: int, shape: ModelShape, memory_bytes: int) -> Fit:
    """The `Fit` of a model with these weights into `memory_bytes`."""
    free = memory_bytes - weights_bytes - OVERHEAD_BYTES
    if free < 0:
        return Fit(0, -free)
    if shape.cache is None:
        return Fit(None)
    most = shape.context_tokens or 2**20
    if shape.cache_bytes(most, value_bytes()) <= free:
        return Fit(most, whole=shape.context_tokens is not None)
    low, high = 0, most  # the cache grows with the tokens, so that a bisection finds the last that fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if shape.cache_bytes(middle, value_bytes()) <= free else (low, middle)
    return Fit(low)


def needed_bytes(weights_bytes: int, shape: ModelShape, tokens: int) -> int:
    """Memory for weights, a context of `tokens` and MLX's overhead."""
    return weights_bytes + shape.cache_bytes(tokens, value_bytes()) + OVERHEAD_BYTES


def value_bytes() -> int:
    """Bytes of a number in the cache: 16 bits on an Apple GPU, 32 on a CPU."""
    return 2 if sys.platform == "darwin" else 4


def memory_limit() -> int:
    """Memory in bytes that a model may use here, without asking MLX: see `_GPU_SHARE` for a Mac."""
    machine = machine_memory()
    if sys.platform == "darwin":
        return _wired_limit() or int(machine * (_GPU_SHARE if machine <= 36 << 30 else 3 / 4))
    return machine


def machine_memory() -> int:
    """Memory in bytes of this machine, or of its container."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _container_limit() if sys.platform != "darwin" else None
    return min(physical, limit) if limit else physical


@cache
def _wired_limit() -> int | None:
    """The limit that the user has set for the GPU of a Mac; None for macOS's own."""
    try:
        asked = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    text = asked.stdout.strip()
    return int(text) << 20 if re.fullmatch(r"[1-9]\d*", text) else None


def _container_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None

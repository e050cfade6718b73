"""Threads and permission for the CPU kernels on this machine."""

from __future__ import annotations

import math
import os
from pathlib import Path


def wanted() -> bool:
    """True if native code is allowed (`MACLLM_NATIVE=0` forbids it)."""
    return os.environ.get("MACLLM_NATIVE", "1") != "0"


_MOST_THREADS = 1024  # more than any machine's cores, and few enough to start on every system


def compute_threads() -> int:
    """Number of compute threads: OMP_NUM_THREADS if it is set, else all physical cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(int(asked), _MOST_THREADS)) if asked.isdecimal() else physical_cores()


def physical_cores() -> int:
    """Physical cores this process may use, by its affinity and its container's quota."""
    allowed = os.sched_getaffinity(0)
    siblings = {_siblings(number) for number in allowed}
    return max(1, min(len(siblings), _quota()))


def _siblings(number: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(number)


def _quota() -> int:
    """The container's limit in whole cores (cgroup v2), or a number larger than any machine's."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return 1 << 16
    return 1 << 16 if quota == "max" else max(1, math.ceil(int(quota) / int(period)))

"""The CPU kernels of Linux, compiled before the run that needs them and in the open: it takes up to a minute, once."""

from __future__ import annotations

import sys

from .output import Progress, say

COMPILING = "compiling the CPU kernels for this machine, once"


def compile_kernels() -> None:
    """Compile the kernels if they are wanted and not there; where that fails the run goes on without, and says so."""
    if sys.platform != "linux":
        return
    from macllm.ops import cpu

    if cpu.pending():
        say(COMPILING)
    with Progress("compiling", unit="steps") as progress:
        notice = cpu.prepare(progress.update)
    if notice:
        say(notice)

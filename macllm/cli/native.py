"""The CPU kernels of Linux, compiled before the run that needs them and in the open: it takes up to a minute, once."""

from __future__ import annotations

import sys
from contextlib import suppress

from .output import Progress, say


def compile_kernels() -> None:
    """Compile the kernels if they are wanted and not there; where that fails the run goes on without, and says so."""
    if sys.platform != "linux":
        return
    from macllm.ops.cpu import build, built
    from macllm.ops.cpu.machine import wanted

    if wanted() and not built():
        say("compiling the CPU kernels for this machine, once")
        with Progress("compiling", unit="steps") as progress, suppress(build.BuildError):
            build.ensure(progress.update)

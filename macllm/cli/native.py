"""The CPU kernels of Linux, compiled before the run that needs them and in the open: it takes up to a minute, once."""

from __future__ import annotations

import sys
from collections.abc import Callable

from .output import Progress, say

COMPILING = "compiling the CPU kernels for this machine, once"


def compile_kernels() -> None:
    """Compile the kernels if they are wanted and not there; where that fails the run goes on without, and says so."""
    if sys.platform != "linux":
        return
    from macllm.ops import cpu

    with Progress("compiling", unit="steps") as progress:
        notice = cpu.prepare(_announced(progress))
    if notice:
        say(notice)


def _announced(progress: Progress) -> Callable[[int, int], None]:
    """The progress, once it is said what it is that goes on."""
    said = False

    def tell(done: int, total: int) -> None:
        nonlocal said
        if not said:
            say(COMPILING)
        said = True
        progress.update(done, total)

    return tell

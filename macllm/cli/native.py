"""The CPU kernels of Linux on the command line: waited for in the open, or compiled beside an answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .output import Progress, say

if TYPE_CHECKING:
    from macllm.ops.cpu import Compiling

COMPILING = "compiling the CPU kernels for this machine, once"


def compile_kernels() -> None:
    """Compile the kernels if they are wanted and not there; where that fails the run goes on without, and says so."""
    if sys.platform != "linux":
        return
    from macllm.ops import cpu

    with Progress("compiling", unit="steps") as progress:
        notice = cpu.prepare(announced(progress))
    if notice:
        say(notice)


@contextmanager
def answering() -> Iterator[None]:
    """Tell of kernels that a model waits for in this block, and at its end of those that came too late for it."""
    if sys.platform != "linux":
        yield
        return
    from macllm.ops import cpu

    with Progress("compiling", unit="steps") as progress:
        tell = announced(progress)

        def watch(state: Compiling) -> None:
            if state.notice is not None:
                say(state.notice)
            elif state.over:
                progress.close()
            elif not state.beside:
                tell(state.done, state.total)

        cpu.watch(watch)
        try:
            yield
        finally:
            cpu.watch(None)
            state = cpu.compiling()
            cpu.end()
    if state is not None and state.beside and not state.over:
        told = f"CPU kernels: {state.done} of {state.total} files compiled"
        say(f"{told}; the next command goes on from there, macllm doctor --build does it all")


def announced(progress: Progress) -> Callable[[int, int], None]:
    """The progress, once it is said what it is that goes on."""
    said = False

    def tell(done: int, total: int) -> None:
        nonlocal said
        if not said:
            say(COMPILING)
        said = True
        progress.update(done, total)

    return tell

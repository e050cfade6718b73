"""Compilation of the Linux CPU kernels: before the work, or in the background of an answer."""

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
    """Compile the kernels unless cached or disabled. On failure, report it and continue without them."""
    if sys.platform != "linux":
        return
    from macllm.ops import cpu

    with Progress("compiling", unit="steps") as progress:
        notice = cpu.prepare(announced(progress))
    if notice:
        say(notice)


@contextmanager
def answering() -> Iterator[None]:
    """Show the progress of compilation that blocks a model, and report unfinished background compilation."""
    if sys.platform != "linux":
        yield
        return
    from macllm.ops import cpu

    with Progress("compiling", unit="steps") as progress:
        show = announced(progress)

        def on_compiling(state: Compiling) -> None:
            if state.notice is not None:
                say(state.notice)
            elif state.over:
                progress.close()
            elif not state.beside:
                show(state.done, state.total)

        cpu.watch(on_compiling)
        try:
            yield
        finally:
            cpu.watch(None)
            state = cpu.compiling()
            cpu.end()
    if state is not None and state.beside and not state.over:
        compiled = f"{state.done} of {state.total} CPU kernel files compiled"
        say(f"{compiled}; the next command continues, macllm doctor --build compiles the rest now")


def announced(progress: Progress) -> Callable[[int, int], None]:
    """A progress callback that first says what is being compiled."""
    is_announced = False

    def show(done: int, total: int) -> None:
        nonlocal is_announced
        if not is_announced:
            say(COMPILING)
        is_announced = True
        progress.update(done, total)

    return show

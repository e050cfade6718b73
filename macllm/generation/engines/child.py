"""The other end of `ProcessEngine`: a process whose main thread owns the model."""

from __future__ import annotations

import queue
import sys
import threading
import weakref
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from macllm.child import Parent, portable

from ..contract import News
from .idle import KernelTrial
from .thread import Call, Calls, Job, own

if TYPE_CHECKING:
    from macllm.ops.cpu import Compiling


def answer(parent: Parent, options: dict[str, Any]) -> None:
    """Load the model and answer until the parent wants the end, or has ended."""
    calls: Calls = queue.SimpleQueue()
    kernels = _Kernels(_Outbox(parent, -1), calls)
    threading.Thread(target=_read, args=(parent, calls, kernels), name="calls", daemon=True).start()
    trial = options["trial"]
    idle = KernelTrial(trial, _Outbox(parent, -1).put) if trial else None
    own(partial(_load, options, kernels), options["model_name"], calls, idle)


def _load(options: dict[str, Any], kernels: _Kernels) -> tuple[Any, Any]:
    kernels.watch()
    module, _, function = options["loader"].partition(":")
    return getattr(import_module(module), function)(options["model_name"], adapter=options["adapter"])


class _Kernels:
    """The CPU kernels while they are compiled: the parent is told how far that is, the owner when they are there."""

    def __init__(self, news: _Outbox, calls: Calls) -> None:
        self._news, self._calls = news, calls
        self._told = ""

    def watch(self) -> None:
        """Tell of whatever is compiled from now on."""
        from macllm.ops import cpu

        cpu.watch(self._tell)

    def end(self) -> None:
        """Leave nothing of a compilation behind but the files that it finished."""
        if "macllm.ops.cpu" in sys.modules:
            from macllm.ops import cpu

            cpu.end()

    def _tell(self, state: Compiling) -> None:
        if state.notice is not None:
            self._news.put(News(state.notice, passing=False))
            return
        text = "" if state.over else f"compiling the CPU kernels, once: {state.done} of {state.total}"
        if text != self._told:
            self._told = text
            self._news.put(News(text, passing=True))
        if state.over:
            self._calls.put(Call("renew"))


def _read(parent: Parent, calls: Calls, kernels: _Kernels) -> None:
    """The reader's thread: queue calls, but answer at once what must not wait for a completion."""
    jobs: weakref.WeakValueDictionary[int, Job] = weakref.WeakValueDictionary()
    while True:
        try:
            method, number, arguments = parent.receive()
        except EOFError:
            kernels.end()
            parent.leave()  # nothing here outlives the parent's wish: no file is open, and a step may take long
        outbox = _Outbox(parent, number)
        if method == "cancel":
            job = jobs.get(number)
            if job is not None:
                job.cancelled.set()
        elif method == "usage":
            from .worker import memory_use

            outbox.put(memory_use())
        else:
            jobs[number] = job = Job(outbox)
            calls.put(Call(method, arguments, job))
            del job


class _Outbox:
    """Results on their way to the parent."""

    def __init__(self, parent: Parent, number: int) -> None:
        self._parent, self._number = parent, number

    def put(self, item: Any) -> None:
        """Send one."""
        self._parent.send((self._number, portable(item) if isinstance(item, BaseException) else item))

    def get(self) -> Any:
        """Results do not come back."""
        raise TypeError("an outbox cannot be read")

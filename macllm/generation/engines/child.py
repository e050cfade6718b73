"""The other end of `ProcessEngine`: a process whose main thread owns the model."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import weakref
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from macllm.child import Parent, portable

from ..contract import OnStatus, Status
from .calls import Calls, EngineCall
from .idle import KernelTrial
from .owner import serve_calls

if TYPE_CHECKING:
    from macllm.ops.cpu import Compiling

_NO_CALL = -1  # number of messages that answer no call


def answer(parent: Parent, settings: dict[str, Any]) -> None:
    """Load the model and answer until the parent wants the end, or has ended."""
    calls: Calls = queue.SimpleQueue()
    on_status = partial(_send, parent, _NO_CALL)
    kernels = _Kernels(on_status, calls)
    threading.Thread(target=_read, args=(parent, calls, kernels), name="calls", daemon=True).start()
    trial = settings["trial"]
    idle = KernelTrial(trial, on_status) if trial else None
    load = partial(_load, settings, kernels)
    logging.getLogger("macllm.adapter").addHandler(_Notices(on_status))
    serve_calls(load, settings["model_name"], settings["options"], calls, idle, settings["adapter"])


def _load(settings: dict[str, Any], kernels: _Kernels) -> tuple[Any, Any]:
    kernels.watch()
    module, _, function = settings["loader"].partition(":")
    return getattr(import_module(module), function)(settings["model_name"], adapter=settings["adapter"])


class _Notices(logging.Handler):
    """Warnings as notices, because nobody reads a child's log while a conversation goes on."""

    def __init__(self, on_status: OnStatus) -> None:
        super().__init__(logging.WARNING)
        self._on_status = on_status

    def emit(self, record: logging.LogRecord) -> None:
        """Send the message of `record`."""
        self._on_status(Status(record.getMessage(), transient=False))


class _Kernels:
    """Progress of compiling the CPU kernels, for the parent, and its end, for the model's owner."""

    def __init__(self, on_status: OnStatus, calls: Calls) -> None:
        self._on_status, self._calls = on_status, calls
        self._told = ""

    def watch(self) -> None:
        """Report compilations from now on."""
        from macllm.ops import cpu

        cpu.watch(self._report)

    def end(self) -> None:
        """Leave nothing of a compilation behind but the files that it finished."""
        if "macllm.ops.cpu" in sys.modules:
            from macllm.ops import cpu

            cpu.end()

    def _report(self, state: Compiling) -> None:
        if state.notice is not None:
            self._on_status(Status(state.notice, transient=False))
            return
        text = "" if state.over else f"compiling the CPU kernels, once: {state.done} of {state.total}"
        if text != self._told:
            self._told = text
            self._on_status(Status(text, transient=True))
        if state.over:
            self._calls.put(EngineCall("renew"))


def _read(parent: Parent, calls: Calls, kernels: _Kernels) -> None:
    """Reader thread: queues calls, but answers `cancel` and `usage` at once."""
    unfinished: weakref.WeakValueDictionary[int, EngineCall] = weakref.WeakValueDictionary()
    while True:
        try:
            method, number, argument = parent.receive()
        except EOFError:
            kernels.end()
            parent.leave()  # at once: no file is open, and a step may take long
        if method == "cancel":
            call = unfinished.get(number)
            if call is not None:
                call.cancelled.set()
        elif method == "usage":
            from .worker import memory_use

            _send(parent, number, memory_use())
        else:
            unfinished[number] = call = EngineCall(method, argument, partial(_send, parent, number))
            calls.put(call)
        call = None


def _send(parent: Parent, number: int, message: Any) -> None:
    """Send a message that answers the call of this number."""
    parent.send((number, portable(message) if isinstance(message, BaseException) else message))

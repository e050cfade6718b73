"""A model in a thread of this process. Importing this module does not import MLX."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ..contract import DEFAULT_OPTIONS, EngineInfo, EngineOptions, IdleWork, MemoryUse
from ..request import Request
from .calls import Calls, EngineCall, EventStream, Messages, closed_error, receive
from .owner import serve_calls

_LEAVE_SECONDS = 5.0  # longest wait for the step in progress when the program ends


class ThreadEngine:
    """An engine in a thread of this process."""

    def __init__(
        self,
        load: Callable[[], tuple[Any, Any]],
        model_name: str = "model",
        idle: IdleWork | None = None,
        *,
        options: EngineOptions = DEFAULT_OPTIONS,
        adapter: str | None = None,
    ) -> None:
        """`load` returns model and tokenizer; the engine's thread calls it at once, and later `idle`.

        `adapter` names the LoRA adapter of that model.
        """
        self._calls: Calls = queue.SimpleQueue()
        self._unfinished: weakref.WeakSet[EngineCall] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._activating = threading.Lock()
        self._info: EngineInfo | None = None
        # a daemon, so that a program can end without close(); the finalizer then ends the thread as MLX needs it
        self._thread = threading.Thread(
            target=serve_calls,
            args=(load, model_name, options, self._calls, idle, adapter),
            name=f"engine of {model_name}",
            daemon=True,
        )
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._calls, self._unfinished, self._thread)

    @property
    def info(self) -> EngineInfo:
        """The model. Waits until it is loaded; raises the error of loading."""
        if self._info is None:
            messages: Messages = queue.SimpleQueue()
            self._call(EngineCall("info", send=messages.put))
            self._info = receive(messages)
        assert self._info is not None
        return self._info

    def activate(self, adapter: str | None) -> None:
        """Make another adapter active, after the completions before it."""
        with self._activating:
            messages: Messages = queue.SimpleQueue()
            self._call(EngineCall("activate", adapter, messages.put))
            try:
                self._info = receive(messages)
            except KeyboardInterrupt:
                self._info = None  # asked for again, because the thread goes on
                raise

    def submit(self, request: Request) -> EventStream:
        """Events of a completion, queued at once. Closing or cancelling it stops this completion alone."""
        messages: Messages = queue.SimpleQueue()
        call = EngineCall("run", request, messages.put)
        self._call(call)
        return EventStream(messages, partial(self._cancel, call))

    def usage(self) -> MemoryUse:
        """Memory now."""
        from .worker import memory_use

        return memory_use()

    def close(self) -> None:
        """Release the model after the current step. Later calls raise UsageError."""
        with self._lock:
            self._end()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _call(self, call: EngineCall) -> None:
        with self._lock:
            if not self._end.alive:
                raise closed_error()
            self._unfinished.add(call)
            self._calls.put(call)

    def _cancel(self, call: EngineCall) -> None:  # a bound method, so that a stream keeps its engine alive
        call.cancelled.set()


def _end(calls: Calls, unfinished: Iterable[EngineCall], thread: threading.Thread) -> None:
    """End the owner: on close, when the engine is garbage, and when the program ends."""
    for call in unfinished:
        call.cancelled.set()
    calls.put(None)
    if threading.current_thread() is not thread:
        thread.join(_LEAVE_SECONDS)

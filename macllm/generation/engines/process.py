"""A model in a child process, whose crash leaves this one alive and which never uses the terminal."""

from __future__ import annotations

import itertools
import queue
import threading
import weakref
from functools import partial
from typing import Any

from macllm.child import ChildProcess, Exit
from macllm.errors import EngineCrashedError, UsageError

from ..contract import DEFAULT_OPTIONS, EngineInfo, EngineOptions, MemoryUse, OnStatus, Status
from ..request import Done, Request
from .calls import EventStream, Messages, closed_error, receive


class ProcessEngine:
    """An engine in a child process. It starts at once, and again at the first call after a crash."""

    def __init__(
        self,
        model_name: str,
        adapter: str | None = None,
        *,
        options: EngineOptions = DEFAULT_OPTIONS,
        loader: str = "macllm.checkpoint:load",
        trial: str | None = None,
        on_status: OnStatus | None = None,
    ) -> None:
        """`loader` is `module:function`; the child calls it with the name and `adapter=`.

        So is `trial`, which tries the Metal kernels that the model asked for; it returns an `IdleWork`.
        `on_status` is called in a thread with status messages.
        """
        self._model_name = model_name
        self._on_status = on_status
        self._settings = {
            "loader": loader,
            "trial": trial,
            "model_name": model_name,
            "adapter": adapter,
            "options": options,
        }
        self._lock = threading.Lock()
        self._activating = threading.Lock()
        self._closed = False
        self._info: EngineInfo | None = None
        self._child = self._start()

    @property
    def info(self) -> EngineInfo:
        """The model. Waits until it is loaded; raises the error of loading."""
        if self._info is None:
            self._info = receive(self._call("info")[2])
            self._keep_adapter()
        assert self._info is not None
        return self._info

    def activate(self, adapter: str | None) -> None:
        """Make another adapter active, after the completions before it, also after a crash."""
        with self._activating:
            try:
                self._info = receive(self._call("activate", adapter)[2])
            except KeyboardInterrupt:
                self._info = None  # asked for again, because the child goes on
                raise
            self._keep_adapter()

    def submit(self, request: Request) -> EventStream:
        """Events of a completion, queued at once. Closing or cancelling it stops this completion alone."""
        child, number, messages = self._call("run", request)
        return EventStream(messages, partial(self._cancel, child, number))

    def usage(self) -> MemoryUse:
        """Memory of the child now, also during a completion."""
        return receive(self._call("usage")[2])

    def close(self) -> None:
        """Release the model: ends the child at once. Later calls raise UsageError."""
        with self._lock:
            self._closed = True
        self._child.end()

    def _keep_adapter(self) -> None:
        """Start later children with the active adapter."""
        if self._info is not None:
            self._settings = {**self._settings, "adapter": self._info.adapter}

    def _call(self, method: str, argument: Request | str | None = None) -> tuple[_Child, int, Messages]:
        with self._lock:
            if self._closed:
                raise closed_error()
            if self._child.crashed:
                self._child = self._start()
            return (self._child, *self._child.call(method, argument))

    def _start(self) -> _Child:
        child = _Child(self._settings, self._on_status)
        weakref.finalize(self, child.end)  # also when the program ends
        return child

    def _cancel(self, child: _Child, number: int) -> None:  # a bound method, so that a stream keeps its engine alive
        child.cancel(number)


class _Child:
    """One life of the child process, and its unanswered calls."""

    def __init__(self, settings: dict[str, Any], on_status: OnStatus | None) -> None:
        self._model_name = settings["model_name"]
        self._on_status = on_status
        self._unanswered: dict[int, Messages] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.process = ChildProcess(
            "macllm.generation.engines.child:answer",
            settings,
            on_message=self._receive,
            on_exit=self._fail,
            log_prefix="engine",
        )

    @property
    def crashed(self) -> bool:
        """True once the process has ended."""
        return self.process.exit is not None

    def call(self, method: str, argument: Request | str | None) -> tuple[int, Messages]:
        """Send a call without waiting for the child. Returns its number and the queue of its answers or error."""
        messages: Messages = queue.SimpleQueue()
        with self._lock:
            number = next(self._numbers)
            self._unanswered[number] = messages
        try:
            self.process.send((method, number, argument))
        except Exception as error:  # a value in the request has no pickle
            self._answer(number, _unsendable(error))
        if self.process.exit is not None:
            self._fail(self.process.exit)
        return number, messages

    def cancel(self, number: int) -> None:
        """Ask the child to stop this call."""
        with self._lock:
            if number not in self._unanswered:
                return
        self.process.send(("cancel", number, None))

    def end(self) -> None:
        """End the process and wait for its end."""
        self.process.end()

    def _receive(self, message: tuple[int, Any]) -> None:
        """Pass a message of the child on to its call."""
        number, value = message
        if isinstance(value, Status):
            if self._on_status:
                self._on_status(value)
            return
        self._answer(number, value)

    def _answer(self, number: int, value: Any) -> None:
        """Pass an answer on to its call."""
        unfinished = isinstance(value, tuple) and not isinstance(value[-1], Done)  # events of a step, not the last
        with self._lock:
            messages = self._unanswered.get(number) if unfinished else self._unanswered.pop(number, None)
        if messages is not None:
            messages.put(value)

    def _fail(self, exit: Exit) -> None:
        """Answer every open call with the error of the child's end."""
        with self._lock:
            for messages in self._unanswered.values():
                messages.put(self._reason(exit))
            self._unanswered.clear()

    def _reason(self, exit: Exit) -> Exception:
        if exit.requested:
            return closed_error()
        return EngineCrashedError(
            f"the engine of {self._model_name} crashed",
            cause=exit.cause,
            remedy="ask again, the model is then loaded anew; or take a smaller model or context",
        )


def _unsendable(error: Exception) -> UsageError:
    return UsageError(
        "the request cannot be sent to the engine's process",
        cause=str(error),
        remedy="only text, numbers, lists and dicts in messages, tools and variables",
    )

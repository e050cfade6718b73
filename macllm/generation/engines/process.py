"""A model in a process of its own: what kills it leaves this one alive, and it never writes on this one's terminal."""

from __future__ import annotations

import itertools
import threading
import weakref
from functools import partial
from typing import Any

from macllm.child import ChildProcess, Exit
from macllm.errors import EngineCrashedError

from ..contract import EngineInfo, MemoryUse, News, Tell
from ..request import Done, Event, Request
from .thread import EventStream, Job, closed_error


class ProcessEngine:
    """A model in a child process. It is started at once, and again by the first call after it crashed."""

    def __init__(
        self,
        model_name: str,
        adapter: str | None = None,
        *,
        loader: str = "macllm.checkpoint:load",
        trial: str | None = None,
        tell: Tell | None = None,
    ) -> None:
        """`loader` is `module:function`; in the child it is called with the name and `adapter=`.

        So is `trial`, which tries the Metal kernels that the model asked for; it returns an `IdleWork`.
        `tell` is called in a thread with what there is to know before the model is loaded.
        """
        self._model_name = model_name
        self._tell = tell
        self._options = {"loader": loader, "trial": trial, "model_name": model_name, "adapter": adapter}
        self._lock = threading.Lock()
        self._closed = False
        self._info: EngineInfo | None = None
        self._child = self._start()

    @property
    def info(self) -> EngineInfo:
        """The model. Waits until it is loaded; raises what loading raised."""
        if self._info is None:
            self._info = self._call("info").result()
        assert self._info is not None
        return self._info

    def submit(self, request: Request) -> EventStream:
        """Events of the completion, which begins at once. Closing the iterator stops it after the current step."""
        job = self._call("run", request)
        return EventStream(job, partial(self._stop, job))

    def usage(self) -> MemoryUse:
        """Memory of the child, at any moment."""
        return self._call("usage").result()

    def cancel(self) -> None:
        """Stop what is being made after the current step; its events end with Done("cancelled")."""
        self._child.cancel(None)

    def close(self) -> None:
        """Give the model up: ends the child, whatever it is doing. Calls after this raise UsageError."""
        with self._lock:
            self._closed = True
        self._child.end()

    def _call(self, method: str, *arguments: Any) -> Job:
        with self._lock:
            if self._closed:
                raise closed_error()
            if self._child.crashed:
                self._child = self._start()
            return self._child.call(method, arguments)

    def _start(self) -> _Child:
        child = _Child(self._options, self._tell)
        weakref.finalize(self, child.end)  # also when the program ends
        return child

    def _stop(self, job: Job) -> None:
        self._child.cancel(job)


class _Child:
    """One life of the process, and the calls it has not answered."""

    def __init__(self, options: dict[str, Any], tell: Tell | None) -> None:
        self._model_name = options["model_name"]
        self._tell = tell
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.process = ChildProcess(
            "macllm.generation.engines.child:answer",
            options,
            on_message=self._receive,
            on_exit=self._fail,
            log_prefix="engine",
        )

    @property
    def crashed(self) -> bool:
        """The process has ended."""
        return self.process.exit is not None

    def call(self, method: str, arguments: tuple[Any, ...]) -> Job:
        """Ask for something; the job gets what the child answers, or the news of its end."""
        job = Job()
        with self._lock:
            number = next(self._numbers)
            self._jobs[number] = job
        self.process.send((method, number, arguments))
        if self.process.exit is not None:
            self._fail(self.process.exit)
        return job

    def cancel(self, job: Job | None) -> None:
        """Tell the child that nobody wants this job any more, or any."""
        with self._lock:
            numbers = [number for number, each in self._jobs.items() if job is None or each is job]
        for number in numbers:
            self.process.send(("cancel", number, ()))

    def end(self) -> None:
        """End the process and wait for its end."""
        self.process.end()

    def _receive(self, message: tuple[int, Any]) -> None:
        """Hand out what the child sent."""
        number, value = message
        if isinstance(value, News):
            if self._tell:
                self._tell(value)
            return
        with self._lock:
            job = self._jobs.get(number)
            if job is not None and (isinstance(value, Done) or not isinstance(value, Event)):
                del self._jobs[number]
        if job is not None:
            job.results.put(value)

    def _fail(self, exit: Exit) -> None:
        """Tell every job why there will be no more answers."""
        with self._lock:
            for job in self._jobs.values():
                job.results.put(self._reason(exit))
            self._jobs.clear()

    def _reason(self, exit: Exit) -> Exception:
        if exit.asked:
            return closed_error()
        return EngineCrashedError(
            f"the engine of {self._model_name} crashed",
            cause=exit.cause,
            remedy="ask again, the model is then loaded anew; or take a smaller model or context",
        )

"""Who owns the model: one thread, or one process (`process.py`). Requests go in, events come out.

Arrays, streams and random state of MLX belong to the thread that made them, so nothing but these plain values
ever leaves it. Importing this module does not import MLX.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

from macllm.errors import UsageError

from ..contract import EngineInfo, IdleWork, MemoryUse
from ..request import Done, Event, Request

QUIET_SECONDS = 1.0
"""Time without a call after which an engine is idle."""
_LEAVE_SECONDS = 5.0  # how long the end of the program waits for the step in progress


class Results(Protocol):
    """Where the results of a job go."""

    def put(self, item: Any) -> None:
        """Hand one over."""
        ...

    def get(self) -> Any:
        """Wait for one."""
        ...


class Job:
    """One call to the owner of the model: where its results arrive, and whether they are still wanted."""

    def __init__(self, results: Results | None = None) -> None:
        self.results: Results = queue.SimpleQueue() if results is None else results
        self.cancelled = threading.Event()

    def result(self) -> Any:
        """The next result. Raises it if it is an exception."""
        result = self.results.get()
        if isinstance(result, BaseException):
            raise result
        return result


class EventStream:
    """The events of one job, as they come."""

    def __init__(self, job: Job, cancel: Callable[[], None]) -> None:
        self._job, self._cancel = job, cancel
        self._over = False

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        if self._over:
            raise StopIteration
        try:
            event = self._job.result()
        except KeyboardInterrupt:
            raise
        except BaseException:
            self._over = True
            raise
        self._over = isinstance(event, Done)
        return event

    def close(self) -> None:
        """Stop after the current step. Events that were not read are lost, the model's cache of the text is not."""
        if not self._over:
            self._over = True
            self._cancel()

    def __del__(self) -> None:
        self.close()


class ThreadEngine:
    """A model in a thread of this process."""

    def __init__(
        self, load: Callable[[], tuple[Any, Any]], model_name: str = "model", idle: IdleWork | None = None
    ) -> None:
        """`load` returns model and tokenizer; it is called on the engine's own thread, at once, as `idle` is later."""
        self._calls: Calls = queue.SimpleQueue()
        self._jobs: weakref.WeakSet[Job] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._info: EngineInfo | None = None
        # a daemon, so that a program can end without close(); the finalizer then ends the thread as MLX needs it
        self._thread = threading.Thread(
            target=own, args=(load, model_name, self._calls, idle), name=f"engine of {model_name}", daemon=True
        )
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._calls, self._jobs, self._thread)

    @property
    def info(self) -> EngineInfo:
        """The model. Waits until it is loaded; raises what loading raised."""
        if self._info is None:
            self._info = self._call(Call("info")).result()
        assert self._info is not None
        return self._info

    def submit(self, request: Request) -> EventStream:
        """Events of the completion, which begins at once. Closing the iterator stops it after the current step."""
        job = self._call(Call("run", (request,)))
        return EventStream(job, partial(self._stop, job))

    def usage(self) -> MemoryUse:
        """Memory, at any moment."""
        from .worker import memory_use

        return memory_use()

    def cancel(self) -> None:
        """Stop what is being made after the current step; its events end with Done("cancelled")."""
        with self._lock:
            _cancel(self._jobs)

    def close(self) -> None:
        """Give the model up, after the current step. Calls after this raise UsageError."""
        with self._lock:
            self._end()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _call(self, call: Call) -> Job:
        with self._lock:
            if not self._end.alive:
                raise closed_error()
            self._jobs.add(call.job)
            self._calls.put(call)
        return call.job

    def _stop(self, job: Job) -> None:
        job.cancelled.set()


@dataclass(frozen=True)
class Call:
    """A method of `Worker` to call; `run` gives many results, `info` one. `renew` only takes kernels that have come."""

    method: Literal["info", "run", "renew"]
    arguments: tuple[Any, ...] = ()
    job: Job = field(default_factory=Job)


Calls = queue.SimpleQueue[Call | None]


def own(load: Callable[[], tuple[Any, Any]], model_name: str, calls: Calls, idle: IdleWork | None = None) -> None:
    """Be the thread that owns the model: load it, then answer calls until None comes."""
    import mlx.core as mx

    from macllm.ops import cpu

    from .worker import Worker

    worker: Worker | None = None
    failure: BaseException | None = None
    answered = False
    try:
        worker = Worker(*load(), model_name)
    except BaseException as error:
        failure = error
    native = cpu.available()
    while (call := _next(calls, idle if answered else None)) is not None:
        try:
            if worker is not None and cpu.available() and not native:
                native = True
                with suppress(Exception):  # the model that is here goes on serving, if its files are gone
                    worker = Worker(*load(), model_name)  # anew: kernels take weights as they are stored
            if call.method == "renew":
                continue
            if worker is None:
                call.job.results.put(failure)
            elif call.method == "run":
                (request,) = call.arguments
                for event in worker.run(request, call.job.cancelled.is_set):
                    call.job.results.put(event)
                answered = True
            else:
                call.job.results.put(getattr(worker, call.method)(*call.arguments))
        except BaseException as error:
            call.job.results.put(error)
        del call
    del worker
    mx.synchronize()
    mx.clear_streams()  # a thread that used MLX and ends without this aborts the process at exit


def _next(calls: Calls, idle: IdleWork | None) -> Call | None:
    """Wait for a call; idle work goes on until one comes."""
    if idle is None:
        return calls.get()
    with suppress(queue.Empty):
        return calls.get(timeout=QUIET_SECONDS)
    idle.resume()
    try:
        return calls.get()
    finally:
        idle.pause()


def closed_error() -> UsageError:
    """What a closed engine answers."""
    return UsageError("the engine is closed", remedy="make a new one")


def _cancel(jobs: Iterable[Job]) -> None:
    for job in jobs:
        job.cancelled.set()


def _end(calls: Calls, jobs: Iterable[Job], thread: threading.Thread) -> None:
    """End the owner: on close, when nobody holds the engine any more, and when the program ends."""
    _cancel(jobs)
    calls.put(None)
    if threading.current_thread() is not thread:
        thread.join(_LEAVE_SECONDS)

"""The other end of `ProcessEngine`: a process whose main thread owns the model."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import traceback
import weakref
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from macllm.errors import MacllmError

from .engine import Call, Calls, Job, own


def main(descriptor: int, options: dict[str, Any]) -> None:
    """Load the model and answer until the parent says so, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(descriptor)
    calls: Calls = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, calls), name="calls", daemon=True).start()
    own(partial(_load, options), options["model_name"], calls)


def _load(options: dict[str, Any]) -> tuple[Any, Any]:
    module, _, function = options["loader"].partition(":")
    return getattr(import_module(module), function)(options["model_name"], adapter=options["adapter"])


def _read(pipe: Connection, calls: Calls) -> None:
    """The reader's thread: queue calls, but answer at once what must not wait for a completion."""
    jobs: weakref.WeakValueDictionary[int, Job] = weakref.WeakValueDictionary()
    lock = threading.Lock()
    while True:
        try:
            method, number, arguments = pipe.recv()
        except (EOFError, OSError):
            method, number, arguments = "end", -1, ()
        if method == "end":
            os._exit(0)  # nothing here outlives the parent's wish: no file is open, and a step may take long
        outbox = _Outbox(pipe, lock, number)
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

    def __init__(self, pipe: Connection, lock: threading.Lock, number: int) -> None:
        self._pipe, self._lock, self._number = pipe, lock, number

    def put(self, item: Any) -> None:
        """Send one."""
        if isinstance(item, BaseException):
            item = portable(item)
        try:
            with self._lock:
                self._pipe.send((self._number, item))
        except OSError:
            os._exit(0)

    def get(self) -> Any:
        """Results do not come back."""
        raise TypeError("an outbox cannot be read")


def portable(error: BaseException) -> BaseException:
    """The error as another process can see it: ours as they are, others with their traceback in a note."""
    if isinstance(error, MacllmError):
        return error
    story = "".join(traceback.format_exception(error))
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(story)
    return error

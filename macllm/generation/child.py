"""The other end of `ProcessEngine`: a process whose main thread owns the model."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
import weakref
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from macllm.errors import MacllmError

from .engine import Call, Calls, Job, News, own

_CLEARING_SECONDS = 1.0  # what a compilation gets to end its compilers and remove its files


def main(descriptor: int, options: dict[str, Any]) -> None:
    """Load the model and answer until the parent says so, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe, lock = Connection(descriptor), threading.Lock()
    calls: Calls = queue.SimpleQueue()
    kernels = _Kernels(_Outbox(pipe, lock, -1))
    threading.Thread(target=_read, args=(pipe, lock, calls, kernels), name="calls", daemon=True).start()
    own(partial(_load, options, kernels), options["model_name"], calls)


def _load(options: dict[str, Any], kernels: _Kernels) -> tuple[Any, Any]:
    kernels.prepare()
    module, _, function = options["loader"].partition(":")
    return getattr(import_module(module), function)(options["model_name"], adapter=options["adapter"])


class _Kernels:
    """The CPU kernels of this machine, compiled before the model is loaded; the parent is told how far that is."""

    def __init__(self, news: _Outbox) -> None:
        self._news = news
        self._told = ""
        self._wanted = True
        self._idle = threading.Event()
        self._idle.set()

    def prepare(self) -> None:
        """Make them ready, or say why they cannot be."""
        if sys.platform != "linux":
            return
        from macllm.ops import cpu

        self._idle.clear()
        try:
            notice = cpu.prepare(self._tell)
        finally:
            self._idle.set()
        if self._told:
            self._news.put(News("", passing=True))
        if notice:
            self._news.put(News(notice, passing=False))

    def end(self) -> None:
        """Leave nothing of a compilation behind."""
        self._wanted = False
        self._idle.wait(_CLEARING_SECONDS)

    def _tell(self, done: int, total: int) -> None:
        if not self._wanted:
            raise SystemExit
        text = f"compiling the CPU kernels, once: {done} of {total}"
        if text != self._told:
            self._told = text
            self._news.put(News(text, passing=True))


def _read(pipe: Connection, lock: threading.Lock, calls: Calls, kernels: _Kernels) -> None:
    """The reader's thread: queue calls, but answer at once what must not wait for a completion."""
    jobs: weakref.WeakValueDictionary[int, Job] = weakref.WeakValueDictionary()
    while True:
        try:
            method, number, arguments = pipe.recv()
        except (EOFError, OSError):
            method, number, arguments = "end", -1, ()
        if method == "end":
            kernels.end()
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

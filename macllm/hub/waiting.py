"""Waits on a network that can be ended at once: a thread blocks in the socket, not its caller."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar, cast

POLL_SECONDS = 0.2
"""The longest time between two calls of `on_wait`."""
_AHEAD = 8  # items that the thread may have made before they are taken

T = TypeVar("T")
OnWait = Callable[[], object]
"""Called while one waits; an exception of it ends the wait."""


class _Source(Generic[T]):
    """A thread that makes items until it is `left`."""

    def __init__(self, source: Callable[[], Iterable[T]]) -> None:
        self.left = threading.Event()
        self.made: queue.Queue[tuple[bool, object]] = queue.Queue(_AHEAD)  # (True, item), (False, error or None)
        self._source = source
        threading.Thread(target=self._run, name="macllm-socket", daemon=True).start()

    def _run(self) -> None:
        items: Iterable[T] = ()
        try:
            items = self._source()
            for item in items:
                self._put(True, item)
                if self.left.is_set():
                    break
        except BaseException as error:
            self._put(False, error)
        else:
            self._put(False, None)
        finally:
            if isinstance(items, Generator):
                items.close()  # and with it the connection

    def _put(self, is_item: bool, value: object) -> None:
        while not self.left.is_set():
            try:
                self.made.put((is_item, value), timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return


def streamed(source: Callable[[], Iterable[T]], on_wait: OnWait) -> Iterator[T]:
    """The items of `source()`, made in a thread of its own, which is left behind if the wait ends early.

    A thread that is left behind ends at its next item or at its own time limit, so it must not write files.
    """
    thread = _Source(source)
    try:
        while True:
            try:
                is_item, value = thread.made.get(timeout=POLL_SECONDS)
            except queue.Empty:
                on_wait()
                continue
            if is_item:
                yield cast(T, value)
            elif isinstance(value, BaseException):
                raise value
            else:
                return
    finally:
        thread.left.set()


def awaited(work: Callable[[], T], on_wait: OnWait) -> T:
    """`work()`, done in a thread of its own."""
    (value,) = streamed(lambda: [work()], on_wait)
    return value


def slept(seconds: float, on_wait: OnWait) -> None:
    """Sleep, in parts."""
    while seconds > 0:
        time.sleep(min(seconds, POLL_SECONDS))
        seconds -= POLL_SECONDS
        on_wait()

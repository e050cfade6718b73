"""The child process of a supervised run: its events, and how it ended, go to the parent as messages."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from macllm.child import Parent, portable

from ..config import TrainConfig

_STOPS = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Completed:
    """The work is done."""


@dataclass(frozen=True)
class Interrupted:
    """The work was stopped on request, and is saved."""


@dataclass(frozen=True)
class Raised:
    """The work ended with an error."""

    error: BaseException


def train(parent: Parent, work: str, config: TrainConfig) -> None:
    """Target of the child: send the events of `work`, a "module:function", then the end.

    SIGTERM, SIGHUP, and a request of the parent to end, interrupt the work once. If the parent was killed, this process
    is, too: a run that nobody looks after holds no lock.
    """
    interruption = _Interruption()
    for number in _STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, interruption.signalled)
    threading.Thread(target=_listen, args=(parent,), name="requests of the parent", daemon=True).start()
    module, _, function = work.partition(":")
    try:
        # Closed here, because errors of a generator that is only dropped, as those of its last save, are lost.
        with closing(getattr(import_module(module), function)(config)) as events:
            for event in events:
                with interruption:
                    parent.send(event)
        end: Any = Completed()
    except KeyboardInterrupt:
        end = Interrupted()
    except BaseException as error:
        end = Raised(portable(error))
    with suppress(KeyboardInterrupt), interruption:
        _ignore()
        parent.send(end)


def _ignore() -> None:
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)


class _Interruption:
    """One KeyboardInterrupt for any number of signals, but never in the middle of a message."""

    def __init__(self) -> None:
        self._is_sending = self._is_due = False

    def __enter__(self) -> None:
        self._is_sending = True

    def __exit__(self, *_failure: object) -> None:
        self._is_sending = False
        if self._is_due:
            self._is_due = False
            raise KeyboardInterrupt

    def signalled(self, *_signal: object) -> None:
        """Interrupt now, or after the message that is being sent."""
        _ignore()
        if self._is_sending:
            self._is_due = True
        else:
            raise KeyboardInterrupt


def _listen(parent: Parent) -> None:
    with suppress(EOFError):
        while True:
            parent.receive()
    parent.kill_orphans()
    os.kill(os.getpid(), signal.SIGTERM)

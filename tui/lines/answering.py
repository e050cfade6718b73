"""Printing of an answer while it streams."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from macllm.chat.session import Session
from macllm.errors import MacllmError
from macllm.generation.request import CallLines, Delta, Events, Prefill
from macllm.units import count_text, tokens_text

from ..messages import TurnEnded, TurnEvent
from ..turn import TurnThread
from .inbox import Inbox
from .narrator import Narrator
from .printer import Printer

_STOPPING_SECONDS = 3.0  # longest wait for the engine to acknowledge a stop
_LONG_PROMPT = 1000  # tokens; reading fewer is not reported
_SILENT_SECONDS = 2.0  # of reasoning, after which a line says so


@dataclass
class Answering:
    """Prints answers. With `conversation`, the reasoning is reported in a line."""

    printer: Printer
    narrator: Narrator
    inbox: Inbox
    conversation: bool = False

    def print(self, session: Session, events: Events, label: str = "") -> bool:
        """Print one answer. Returns True if Ctrl-C stopped it.

        Raises: MacllmError, and what ends the program: SystemExit, BrokenPipeError.
        """
        self.printer.begin(label)
        inbox = self.inbox
        thread = TurnThread(
            events, lambda event: inbox.put(TurnEvent(event)), lambda error: inbox.put(TurnEnded(error))
        )
        thread.start()
        error: MacllmError | None = None
        stopped = False
        thoughts = _Thoughts(self.narrator) if self.conversation else None
        try:
            error = self._print_until_end(thoughts)
        except (KeyboardInterrupt, SystemExit, BrokenPipeError) as interruption:
            stopped = True
            session.stop()
            if not isinstance(interruption, BrokenPipeError):
                with contextlib.suppress(BrokenPipeError):
                    error = self._print_until_end(thoughts, _STOPPING_SECONDS)
                    self.printer.end()
            thread.join(_STOPPING_SECONDS)
            if not isinstance(interruption, KeyboardInterrupt):
                raise
        self.narrator.clear()
        if not stopped:
            self.printer.end()
        if error is not None:
            raise error
        return stopped

    def _print_until_end(self, thoughts: _Thoughts | None, timeout_seconds: float | None = None) -> MacllmError | None:
        """Print events until the answer ends or none arrives for a time; return the answer's error."""
        lines = CallLines()
        while (message := self.inbox.receive(timeout_seconds, self.printer.catch_up)) is not None:
            match message:
                case TurnEnded(error):
                    if thoughts is not None:
                        thoughts.end()
                    return error
                case TurnEvent(Prefill(done, total)) if total > _LONG_PROMPT:
                    self.narrator.show(f"reading {count_text(done)}/{count_text(total)}")
                case TurnEvent(Delta(given=True) as delta):
                    lines.text(delta)  # printed before the answer was stopped
                case TurnEvent(Delta(kind="reasoning") as delta):
                    self.narrator.show("thinking…")
                    if thoughts is not None:
                        thoughts.add(delta)
                case TurnEvent(Delta() as delta):
                    self.narrator.clear()
                    if thoughts is not None and delta.text.strip():
                        thoughts.end()
                    self.printer.write(lines.text(delta))
        return None


class _Thoughts:
    """Reports the reasoning of one answer in a line, and where it takes long also that it has begun."""

    def __init__(self, narrator: Narrator) -> None:
        self._narrator = narrator
        self._tokens = 0
        self._began: float | None = None

    def add(self, delta: Delta) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = now
        elif not self._narrator.redraws and now - self._began > _SILENT_SECONDS:
            self._began = float("inf")
            self._narrator.say("thinking…")
        self._tokens += len(delta.tokens)

    def end(self) -> None:
        if self._began is not None:
            self._began = None
            self._narrator.say(f"thinking: {tokens_text(self._tokens)}, /thinking shows it")

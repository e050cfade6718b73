"""One answer while it is generated: its events, its widget, and the answer it replaces."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from macllm.chat.conversation import Turn
from macllm.chat.session import Session
from macllm.errors import MacllmError
from macllm.generation.request import Event, Events

from .messages import ThreadMessage, TurnEnded, TurnEvent
from .text.speed import SpeedMeter
from .turn import TurnThread
from .widgets.turns import AnswerTurn, UserTurn

if TYPE_CHECKING:
    from macllm.generation.contract import MemoryUse


_MEMORY_INTERVAL_SECONDS = 1.0


class PendingAnswer:
    """A reply to `user_turn`, or a new attempt that replaces the answer `former`."""

    def __init__(
        self,
        session: Session,
        events: Events,
        answer: AnswerTurn,
        *,
        user_turn: UserTurn | None = None,
        former: AnswerTurn | None = None,
    ) -> None:
        self.session = session
        self.answer = answer
        self.user_turn = user_turn
        self.former = former
        self.speed = SpeedMeter()
        self.stopping = False
        self.memory: MemoryUse | None = None
        self._measured = time.monotonic()
        self._before = session.last_answer
        self._events = events

    def start(self, post: Callable[[ThreadMessage], object]) -> None:
        """Start; `post` gets a TurnEvent for every event and then TurnEnded, from another thread."""

        def on_event(event: Event) -> None:
            post(TurnEvent(event))
            self._measure()

        def on_end(error: MacllmError | None) -> None:
            if error is None:
                self._measure(at_once=True)
            post(TurnEnded(error))

        TurnThread(self._events, on_event, on_end).start()

    def _measure(self, at_once: bool = False) -> None:
        """Record the memory in use, at most once a second."""
        now = time.monotonic()  # called in the turn's thread, because the engine may be slow to reply
        if at_once or now - self._measured > _MEMORY_INTERVAL_SECONDS:
            self._measured = now
            with suppress(MacllmError):
                self.memory = self.session.engine.usage()

    def stop(self) -> None:
        """Stop after the current step."""
        if not self.stopping:
            self.stopping = True
            self.session.stop()

    def outcome(self) -> Turn | None:
        """The answer that was added to the conversation; None if it has no text."""
        latest = self.session.last_answer
        return None if latest is self._before else latest

    async def finish(self, turn: Turn | None) -> None:
        """Draw the final state. A new attempt without text leaves the former answer in place."""
        if turn is None:
            await self.answer.remove()
            if self.former is not None:
                self.former.display = True
        else:
            await self.answer.finish(turn)
            if self.former is not None:
                await self.former.remove()

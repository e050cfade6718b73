"""One answer while it is made: its events, its widget, and what it replaces."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from textual.message import Message

from macllm.chat.session import Session, Turn
from macllm.errors import MacllmError
from macllm.generation.request import Event

from .messages import TurnEnded, TurnEvent
from .text.speed import SpeedMeter
from .turn import TurnThread
from .widgets.turns import AnswerTurn, UserTurn

if TYPE_CHECKING:
    from macllm.generation.contract import MemoryUse


_MEASURE_SECONDS = 1.0


class Running:
    """A reply to `user_turn`, or another attempt that takes the place of the answer `former`."""

    def __init__(
        self,
        session: Session,
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
        self._events = session.regenerate() if user_turn is None else session.reply(user_turn.text)

    def start(self, post: Callable[[Message], object]) -> None:
        """Begin; `post` gets every event and then the end, from another thread."""

        def pass_on(event: Event) -> None:
            post(TurnEvent(event))
            self._measure()

        def end(error: MacllmError | None) -> None:
            if error is None:
                self._measure(at_once=True)
            post(TurnEnded(error))

        TurnThread(self._events, pass_on, end).start()

    def _measure(self, at_once: bool = False) -> None:
        """Note the memory in use, every second at most. In the turn's thread, because the engine may be far away."""
        now = time.monotonic()
        if at_once or now - self._measured > _MEASURE_SECONDS:
            self._measured = now
            with suppress(MacllmError):
                self.memory = self.session.engine.usage()

    def stop(self) -> None:
        """End it after the current step."""
        if not self.stopping:
            self.stopping = True
            self.session.stop()

    def outcome(self) -> Turn | None:
        """The answer that joined the conversation; None when nothing was said."""
        latest = self.session.last_answer
        return None if latest is self._before else latest

    async def finish(self, turn: Turn | None) -> None:
        """Draw the end. An attempt that came to nothing leaves the former answer where it was."""
        if turn is None:
            await self.answer.remove()
            if self.former is not None:
                self.former.display = True
        else:
            await self.answer.finish(turn)
            if self.former is not None:
                await self.former.remove()

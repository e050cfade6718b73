"""One answer while it is generated: its events and its widget."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from macllm.chat.conversation import Attachment, Node
from macllm.chat.session import Session
from macllm.errors import MacllmError
from macllm.generation.request import Delta, Event, Prefill
from macllm.units import count_text, speed_text

from . import questions
from .messages import ThreadMessage, TurnEnded, TurnEvent
from .outcomes import Answer, Question
from .text.speed import SpeedMeter
from .turn import TurnThread
from .widgets.turns import AnswerTurn

if TYPE_CHECKING:
    from macllm.generation.contract import MemoryUse

_MEMORY_INTERVAL_SECONDS = 1.0


class Mirror(Protocol):
    """A second place where the answer is drawn."""

    def feed(self, delta: Delta) -> None:
        """Add text."""
        ...

    async def finish(self, node: Node | None) -> None:
        """Draw the end; None: there is no answer."""
        ...


class PendingAnswer:
    """An answer while it comes: `session` makes it, `widget` shows it.

    `edited` is the message that was edited for it, `returned` the message to write again if there is no answer.
    """

    def __init__(
        self,
        session: Session,
        answer: Answer,
        widget: AnswerTurn,
        attachments: tuple[Attachment, ...] = (),
        edited: Node | None = None,
    ) -> None:
        self.session = session
        self.answer = answer
        self.widget = widget
        self.mirror: Mirror | None = None
        self.edited = edited
        self.returned = (answer.message, attachments) if answer.message else None
        self.speed = SpeedMeter()
        self.stopping = False
        self.memory: MemoryUse | None = None
        self.activity = "thinking…"
        self.reading: tuple[int, int] | None = None  # tokens of the prompt read so far, and all of them
        self.reused_tokens = 0  # of the prompt
        self.first_token_seconds: float | None = None
        self._began = self._measured = time.monotonic()
        self._before = session.asked

    def show(self, event: Event) -> None:
        """Draw an event, and say what goes on."""
        match event:
            case Prefill(done, total) if not self.stopping:
                if self.reading is None:
                    self.reused_tokens = done  # the first event says how much is there already
                self.reading = done, total
                self.activity = f"reading {count_text(done)}/{count_text(total)}"
            case Delta() as delta:
                self.reading = None
                if self.first_token_seconds is None and delta.tokens:
                    self.first_token_seconds = time.monotonic() - self._began
                self.widget.feed(delta)
                if self.mirror is not None:
                    self.mirror.feed(delta)
                if not delta.given:
                    self.speed.add(max(len(delta.tokens), 1), time.monotonic())
                if not self.stopping:
                    speed = self.speed.tokens_per_second
                    self.activity = speed_text(speed) if speed else "answering…"

    def start(self, post: Callable[[ThreadMessage], object]) -> None:
        """Start; `post` gets a TurnEvent for every event and then TurnEnded, from another thread."""

        def on_event(event: Event) -> None:
            post(TurnEvent(event))
            self._measure()

        def on_end(error: MacllmError | None) -> None:
            if error is None:
                self._measure(at_once=True)
            post(TurnEnded(error))

        TurnThread(self.answer.events, on_event, on_end).start()

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
            self.activity = "stopping…"
            self.session.stop()

    def outcome(self) -> Node | None:
        """The answer in the conversation, or the mark that a summary left; None if there is neither."""
        path = self.session.conversation.path
        if not path or self._before.nodes.get(path[-1].id) is path[-1]:
            return None
        return path[-1]

    def question(self, error: MacllmError | None, node: Node | None, waits: bool) -> Question | None:
        """The ways on after the end, if it needs any. `waits`: a message in the prompt is to be sent after it."""
        message = questions.Unanswered() if waits else None
        if self.returned is not None and node is None:
            message = questions.Unanswered(self.returned[1], self.edited is not None, self.returned[0])
        return questions.after_answer(error, self.session, answer=node.turn if node else None, message=message)

    async def finish(self, node: Node | None) -> bool:
        """Draw the final state. Returns True if the widget stays as the drawing of `node`."""
        if self.mirror is not None:
            await self.mirror.finish(node)
        if node is not None and node.turn.role == "assistant":
            await self.widget.finish(node)
            return True
        if node is None and self.answer.title and not self.stopping:
            await self.widget.finish(None)
        else:
            await self.widget.remove()
        return False

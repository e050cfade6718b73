"""Messages and their answers, one after the other: the queue and the answer that is being written."""

from __future__ import annotations

from collections.abc import Callable

from macllm.chat.conversation import Attachment, Node
from macllm.chat.session import Session
from macllm.errors import UsageError
from macllm.generation.request import Delta, Event

from .keymap import stop_remedy
from .messages import ThreadMessage
from .model_slot import ModelSlot
from .outcomes import Answer
from .pending_answer import PendingAnswer
from .widgets.transcript import Transcript
from .widgets.turns import AnswerTurn, UserTurn


class Exchange:
    """Sends messages in order and draws their answers.

    `post` gets the events of the answers in other threads.
    """

    def __init__(self, transcript: Transcript, model: ModelSlot, post: Callable[[ThreadMessage], object]) -> None:
        self.pending: PendingAnswer | None = None
        self._transcript = transcript
        self._model = model
        self._post = post
        self._queue: list[UserTurn] = []

    @property
    def queued(self) -> int:
        """The number of messages that wait."""
        return len(self._queue)

    def enqueue(self, text: str, attachments: tuple[Attachment, ...] = ()) -> None:
        """Send a message after the ones that wait."""
        turn = UserTurn(text, attachments, queued=True)
        self._queue.append(turn)
        self._transcript.add(turn)
        self._transcript.anchor()
        self.send_next()

    def send_next(self) -> None:
        """Send the next message that waits, unless an answer is being written."""
        session = self._model.session
        if session is None or self.pending is not None or not self._queue:
            return
        turn = self._queue.pop(0)
        turn.remove_class("-queued")
        events = session.reply(turn.message, turn.attachments)
        self._transcript.adopt(turn, session.asked.path[-1])
        self.start(Answer(events, turn.message), turn.attachments)

    def send_edited(self, node: Node, text: str, attachments: tuple[Attachment, ...] = ()) -> None:
        """Send a text in place of an earlier message, as a branch. Raises: UsageError during an answer."""
        session = self.idle_session()
        self.start(Answer(session.edit(node.id, text, attachments), text), attachments, node)
        self._transcript.anchor()

    def idle_session(self) -> Session:
        """The session. Raises: UsageError if there is none, or it is busy."""
        session = self._model.session
        if session is None:
            raise UsageError("No model is loaded yet.", remedy="wait until it is there, or /model chooses another")
        if self.pending is not None:
            raise UsageError("An answer is being written.", remedy=stop_remedy(self._transcript.app))
        return session

    def start(self, answer: Answer, attachments: tuple[Attachment, ...] = (), edited: Node | None = None) -> None:
        """Show the events of an answer below the message that it answers, which may be an `edited` one."""
        session = self._model.session
        assert session is not None
        widget = AnswerTurn(title=answer.title)
        if not answer.title and self._transcript.show_later(session.asked):
            widget.display = False  # until its first new text, the former answer is seen
        self._transcript.add(widget)
        self.pending = PendingAnswer(session, answer, widget, attachments, edited)
        self.pending.start(self._post)

    async def show(self, event: Event) -> None:
        """Draw an event of the pending answer. Its first new text takes the place of a former answer."""
        if (pending := self.pending) is None:
            return
        pending.show(event)
        if not pending.widget.display and isinstance(event, Delta) and event.text and not event.given:
            await pending.widget.draw_now()
            self._transcript.show_now(pending.widget)

    async def finish(self, pending: PendingAnswer) -> Node | None:
        """Draw the final state. Returns the answer, or the mark of a summary; None if there is neither."""
        node = pending.outcome()
        if await pending.finish(node) and node is not None:
            self._transcript.show_now(pending.widget)
            self._transcript.adopt(pending.widget, node)
        self._transcript.show(pending.session.conversation)
        self.pending = None
        return node

    def take_queue(self) -> list[tuple[str, tuple[Attachment, ...]]]:
        """Remove the messages that wait, and return them."""
        messages = [(turn.message, turn.attachments) for turn in self._queue]
        for turn in self._queue:
            turn.remove()
        self._queue.clear()
        return messages

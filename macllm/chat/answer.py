"""An answer while it is generated: its text so far, as a turn of the conversation."""

from __future__ import annotations

from typing import Literal

from macllm.generation.request import CallLines, Delta, Done, Event, FinishReason

from .conversation import Conversation, Origin, Turn


class PartialAnswer:
    """Collects the events of an answer to the head of `conversation`, or of the continued answer `node`.

    `begun` is the conversation before the first text of the answer, `asked` that up to the question.
    """

    def __init__(self, conversation: Conversation, origin: Origin, node: str | None = None) -> None:
        self.begun = conversation
        self.asked = conversation if node is None else conversation.at(conversation.nodes[node].parent)
        self._before = conversation
        self._origin = origin
        self._node = node
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._tokens: list[int] = []
        self._lines = CallLines()
        self._done: Done | None = None

    @property
    def has_text(self) -> bool:
        """True from the first text on."""
        return bool(self._content or self._reasoning)

    @property
    def finish(self) -> FinishReason | None:
        """The reason of the end; None before it."""
        return self._done.finish_reason if self._done else None

    def add(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, Done):
            self._done = event
        elif isinstance(event, Delta):
            self._tokens.extend(event.tokens)
            if event.text:
                kind = self._reasoning if event.kind == "reasoning" else self._content
                kind.append(event.text if event.kind == "reasoning" else self._lines.text(event))

    def conversation(self, finish: FinishReason | Literal["failed"]) -> Conversation:
        """The conversation with the answer so far, always in the same node."""
        turn = self._turn(finish)
        if self._node is None:
            self._before = self._before.added(turn)
            self._node = self._before.head
        assert self._node is not None
        self._before = self._before.changed(self._node, turn)
        return self._before

    def _turn(self, finish: FinishReason | Literal["failed"]) -> Turn:
        done = self._done
        return Turn(
            role="assistant",
            content="".join(self._content),
            reasoning="".join(self._reasoning),
            finish=finish,
            usage=done.usage if done else None,
            timing=done.timing if done else None,
            seed=done.seed if done else self._origin.sampling.seed,
            tokens=tuple(self._tokens),
            origin=self._origin,
        )

"""A conversation as an immutable tree of turns.

The model reads the path from the first turn to the head.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from macllm.errors import UsageError
from macllm.generation.request import FinishReason, SamplingParams, Timing, Usage

Role = Literal["user", "assistant", "cut"]


@dataclass(frozen=True)
class Attachment:
    """A text sent with a message, such as a file or a long paste."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model and the settings that made an answer; they replay it."""

    model: str  # a name or folder that `macllm.load` takes
    adapter: str | None = None
    system: str | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)  # its seed is that of the completion
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """The model and the adapter that the user chose for the answers from then on."""

    model: str
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of the conversation; the model's reasoning is separate from its content.

    A "cut" is a mark in the path: the model reads only the turns from the node `kept` on (None: those after the
    mark), after the summary in `content`, if any. `finish` is None except for an answer; "failed" marks one that an
    error cut short. `tokens` are those of the completion.
    """

    role: Role
    content: str
    attachments: tuple[Attachment, ...] = ()
    reasoning: str = ""
    finish: FinishReason | Literal["failed"] | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    seed: int | None = None
    tokens: tuple[int, ...] = ()
    origin: Origin | None = None
    kept: str | None = None
    choice: ModelChoice | None = None  # made after this turn, before the next one

    def message(self) -> dict[str, str]:
        """The turn as a message for a chat template."""
        message = {"role": self.role, "content": with_attachments(self.content, self.attachments)}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        return message


@dataclass(frozen=True)
class Node:
    """A turn in the tree; `parent` is the id of the turn before it, `created` in seconds since 1970."""

    id: str
    parent: str | None
    turn: Turn
    created: float


@dataclass(frozen=True)
class Conversation:
    """A tree of turns, in order of creation.

    `head` is the last turn of the current path; None: an empty path.
    """

    id: str
    created: float
    title: str = ""  # as the user named it
    system: str | None = None
    nodes: Mapping[str, Node] = field(default_factory=dict[str, Node])
    head: str | None = None

    @classmethod
    def begin(cls, system: str | None = None) -> Conversation:
        """An empty conversation with a new id."""
        return cls(_new_id(), time.time(), system=system)

    @cached_property
    def path(self) -> tuple[Node, ...]:
        """The nodes from the first turn to the head."""
        nodes: list[Node] = []
        at = self.head
        while at is not None:
            nodes.append(self.nodes[at])
            at = nodes[-1].parent
        return tuple(reversed(nodes))

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """The turns of the path."""
        return tuple(node.turn for node in self.path)

    @property
    def name(self) -> str:
        """The title, else the beginning of the first message, in one line."""
        if self.title:
            return self.title
        first = next((node.turn.content for node in self.nodes.values() if node.turn.role == "user"), "")
        line = " ".join(first.split())
        return line if len(line) <= _TITLE_LENGTH else line[: _TITLE_LENGTH - 1].rstrip() + "…"

    @cached_property
    def read(self) -> tuple[Node, ...]:
        """The nodes of the path that the model reads: those that no cut leaves out, without the cuts."""
        read: list[Node] = []
        for node in self.path:
            if node.turn.role == "cut":
                first = next((n for n, each in enumerate(read) if each.id == node.turn.kept), 0)
                read = read[first:] if node.turn.kept else []
            else:
                read.append(node)
        return tuple(read)

    @property
    def summary(self) -> str:
        """The text of the newest cut, in place of the turns that are not read."""
        return next((turn.content for turn in reversed(self.turns) if turn.role == "cut"), "")

    @property
    def model_choice(self) -> ModelChoice | None:
        """The model and the adapter chosen last, else those of the newest answer.

        None in a path without either.
        """
        for turn in reversed(self.turns):
            if turn.choice is not None:
                return turn.choice
            if turn.origin is not None:
                return ModelChoice(model=turn.origin.model, adapter=turn.origin.adapter)
        return None

    @property
    def messages(self) -> list[dict[str, str]]:
        """Messages for a chat template: system prompt with the newest summary, then the turns to be read."""
        opening = "\n\n".join(filter(None, (self.system, self.summary and _SUMMARY + self.summary)))
        system = [{"role": "system", "content": opening}] if opening else []
        return system + [node.turn.message() for node in self.read]

    def node(self, id: str) -> Node:
        """A node by its id. Raises: UsageError if it is unknown."""
        if id not in self.nodes:
            raise UsageError(f"The conversation has no message {id}.", remedy="/versions lists the other ones")
        return self.nodes[id]

    def siblings(self, node: str) -> tuple[str, ...]:
        """The ids of the turns in the same place of the tree, oldest first; `node` is one of them."""
        return self._children[self.nodes[node].parent]

    def added(self, turn: Turn) -> Conversation:
        """With `turn` after the head, as the new head."""
        node = Node(_new_id(), self.head, turn, time.time())
        return replace(self, nodes={**self.nodes, node.id: node}, head=node.id)

    def changed(self, node: str, turn: Turn) -> Conversation:
        """With another turn in a node."""
        return replace(self, nodes={**self.nodes, node: replace(self.nodes[node], turn=turn)})

    def choosing(self, choice: ModelChoice) -> Conversation:
        """With a choice after the head; a conversation without turns stays as it is."""
        if self.head is None:
            return self
        return self.changed(self.head, replace(self.nodes[self.head].turn, choice=choice))

    def at(self, node: str | None) -> Conversation:
        """With `node` as the head, so that the next turn begins a new branch after it.

        None: before the first turn. Raises: UsageError for an unknown node.
        """
        return replace(self, head=None if node is None else self.node(node).id)

    def showing(self, node: str) -> Conversation:
        """With the newest path through `node`."""
        while children := self._children.get(node):
            node = children[-1]
        return self.at(node)

    def forked(self, node: str | None = None) -> Conversation:
        """A new conversation with a copy of the path up to `node`, the head by default."""
        path = (self if node is None else self.at(node)).path
        ids = {each.id: _new_id() for each in path}
        copies = [
            replace(
                each,
                id=ids[each.id],
                parent=ids[each.parent] if each.parent else None,
                turn=replace(each.turn, kept=ids.get(each.turn.kept or "")),
            )
            for each in path
        ]
        new = Conversation.begin(self.system)
        return replace(
            new, title=self.title, nodes={each.id: each for each in copies}, head=copies[-1].id if copies else None
        )

    @cached_property
    def _children(self) -> dict[str | None, tuple[str, ...]]:
        children: dict[str | None, list[str]] = {}
        for node in self.nodes.values():
            children.setdefault(node.parent, []).append(node.id)
        return {parent: tuple(ids) for parent, ids in children.items()}


_TITLE_LENGTH = 60
_SUMMARY = "Summary of the conversation before these messages:\n"


def with_attachments(text: str, attachments: tuple[Attachment, ...]) -> str:
    """The text, then each attachment between tags that do not occur in it."""
    parts = [text.strip("\n")] if text.strip() else []
    for attachment in attachments:
        tag, number = "file", 1
        while f"</{tag}>" in attachment.text:
            number += 1
            tag = f"file-{number}"
        closing = "" if attachment.text.endswith("\n") else "\n"
        parts.append(f'<{tag} name="{attachment.name}">\n{attachment.text}{closing}</{tag}>')
    return "\n\n".join(parts) if attachments else text


def _new_id() -> str:
    return os.urandom(6).hex()

"""Commands for the versions of messages: edited questions and other answers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from macllm.chat.conversation import Node
from macllm.chat.session import Session
from macllm.errors import UsageError
from macllm.visible import one_line

from ..outcomes import Answer, Ask, Choice, Outcome, Question, Redraw, Say
from .command import Command

_NUMBERED = re.compile(r"#(\d+)\s*(.*)", re.DOTALL)
_SNIPPET = 50  # characters
_MOST = 20


def _versions(session: Session, argument: str) -> Outcome:
    if argument:
        session.show(argument)
        return Redraw()
    choices = [
        Choice(f"{'question' if node.turn.role == 'user' else 'answer'} {number}: {_snippet(node)}", f"/versions {id}")
        for number, id, node in _others(session)
    ]
    if not choices:
        raise UsageError("Every message has one version.", remedy="/regen or /edit makes another")
    return Ask(Question("Other versions, those of the newest message first:", tuple(choices[:_MOST])))


def _others(session: Session) -> Iterator[tuple[int, str, Node]]:
    """Number, id and node of each version that is not on the path."""
    conversation = session.conversation
    for shown in reversed(conversation.path):
        for number, id in enumerate(conversation.siblings(shown.id), 1):
            if id != shown.id:
                yield number, id, conversation.nodes[id]


def _edit(session: Session, argument: str) -> Outcome:
    asked = [node for node in session.conversation.path if node.turn.role == "user"]
    if not asked:
        raise UsageError("The conversation has no message to edit.", remedy="write one first")
    if not argument:
        lines = [f"#{number}  {_snippet(node)}" for number, node in enumerate(asked, 1)][-_MOST:]
        return Say(
            "\n".join([*lines, "/edit TEXT asks something else in place of the last, /edit #1 TEXT of the first."])
        )
    number, text = len(asked), argument
    if (match := _NUMBERED.fullmatch(argument)) is not None:
        number, text = int(match[1]), match[2]
    if not 1 <= number <= len(asked):
        raise UsageError(f"There is no message #{number}.", remedy="/edit lists them")
    node = asked[number - 1]
    return Answer(session.edit(node.id, text, node.turn.attachments), text)


def _snippet(node: Node) -> str:
    text = one_line(node.turn.content)
    return text if len(text) <= _SNIPPET else text[: _SNIPPET - 1].rstrip() + "…"


COMMANDS = (
    Command("edit", "[[#N] TEXT]", "ask something else in place of the last message, or of the Nth", _edit, idle=True),
    Command("versions", "", "choose another version of a message", _versions, idle=True, aliases=("siblings",)),
)

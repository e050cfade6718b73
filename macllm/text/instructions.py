"""System and developer messages that a chat template would leave out silently.

Some templates write only the first of several (gpt-oss's), or no system message at all (the first of Phi-3).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from macllm.errors import UsageError

from .json_data import is_list
from .roles import Messages, joined

log = logging.getLogger("macllm")

INSTRUCTIONS = ("system", "developer")
Render = Callable[[Messages], str]


def write_all(messages: Messages, render: Render) -> str:
    """Render the messages in the first form that loses no system or developer message.

    As they are, then joined in front, then before the text of the first user message. Logs a warning if no form has
    all of them. Raises as `render` for the messages as they are.
    """
    text = render(messages)
    contents = [_text(message) for message in messages if message["role"] in INSTRUCTIONS]
    if all(content.strip() in text for content in contents):
        return text
    # marks tell a message that is left out from one that is written in other words
    marked = [
        {**message, "content": f"instruction{at}mark"} if message["role"] in INSTRUCTIONS else message
        for at, message in enumerate(messages)
    ]
    marks = [message["content"] for message in marked if message["role"] in INSTRUCTIONS]
    for rearranged in (_unchanged, _joined, _before_first_question):
        try:
            found = render(rearranged(marked))
        except UsageError:
            continue
        if all(mark in found for mark in marks):
            return render(rearranged(messages))
    log.warning("the chat template leaves out a system message of this conversation")
    return render(messages)


def _unchanged(messages: Messages) -> Messages:
    return messages


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return joined(content) if is_list(content) else str(content)


def _joined(messages: Messages) -> Messages:
    """The instructions joined to one message, with the role of the first, before all others."""
    instructions = [message for message in messages if message["role"] in INSTRUCTIONS]
    content = "\n\n".join(map(_text, instructions))
    return [{**instructions[0], "content": content}, *(each for each in messages if each["role"] not in INSTRUCTIONS)]


def _before_first_question(messages: Messages) -> Messages:
    """The instructions joined and put before the first user message's text."""
    first, *others = _joined(messages)
    at = next((n for n, each in enumerate(others) if each["role"] == "user"), None)
    if at is None:
        return messages
    content = others[at]["content"]
    before = first["content"] + "\n\n"
    question = [{"type": "text", "text": before}, *content] if is_list(content) else f"{before}{content or ''}"
    return [*others[:at], {**others[at], "content": question}, *others[at + 1 :]]

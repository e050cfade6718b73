"""Message roles and call ids in the form that a chat template accepts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import count
from typing import Any

from .json_data import is_list

Messages = list[dict[str, Any]]


def joined(parts: Iterable[dict[str, Any]]) -> str:
    """The joined text of content parts."""
    return "".join(str(dict(part).get("text", "")) for part in parts)


_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


def with_short_ids(messages: Messages) -> Messages:
    """The messages with unique call ids of nine letters and digits, as Mistral's templates require.

    A result without an id belongs to the first call before it that has no result yet.
    """
    given_ids = {str(call.get("id")) for message in messages for call in message.get("tool_calls") or ()}
    given_ids |= {str(message.get("tool_call_id")) for message in messages}
    free = (number for n in count() if (number := f"{n:09d}") not in given_ids)
    short = {each: each for each in given_ids if _SHORT_ID.fullmatch(each)}
    waiting: list[str] = []

    def convert(identity: Any) -> str:
        if identity is None:
            return next(free)
        if str(identity) not in short:
            short[str(identity)] = next(free)
        return short[str(identity)]

    numbered: Messages = []
    for message in messages:
        if "tool_calls" in message:
            calls = [{**call, "id": convert(call.get("id"))} for call in message["tool_calls"]]
            waiting = [call["id"] for call in calls]
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool" and (waiting or "tool_call_id" in message):
            given = convert(message["tool_call_id"]) if "tool_call_id" in message else waiting[0]
            waiting = [each for each in waiting if each != given]
            message = {**message, "tool_call_id": given}
        numbered.append(message)
    return numbered


def with_known_roles(messages: Messages, source: str) -> Messages:
    """Replace the role "developer" by "system" for a template without that role.

    Several of them at the beginning are joined: most templates accept one system message.
    """
    if _DEVELOPER.search(source) or all(message["role"] != "developer" for message in messages):
        return messages
    known = [{**each, "role": "system"} if each["role"] == "developer" else each for each in messages]
    begins = next((at for at, each in enumerate(known) if each["role"] != "system"), len(known))
    if begins < 2 or all(each["role"] == "system" for each in messages[:begins]):
        return known
    contents = [each["content"] or "" for each in known[:begins]]
    text = "\n\n".join(joined(each) if is_list(each) else str(each) for each in contents)
    return [{**known[0], "content": text}, *known[begins:]]


_DEVELOPER = re.compile(r"""['"]developer['"]""")

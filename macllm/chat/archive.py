"""The JSON export of a conversation, with all branches, and its import."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from macllm.errors import DataError, UsageError
from macllm.files import json_text, read_json, write_text

from .conversation import Conversation, Node
from .turn_json import from_json, to_json

_MARK = "macllm conversation"
_VERSION = 1
_ID_DIGITS = 6  # a shorter name of digits is a number
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


def as_object(conversation: Conversation) -> dict[str, Any]:
    """The conversation with all its branches as a JSON object."""
    return {
        "format": _MARK,
        "version": _VERSION,
        "id": conversation.id,
        "created": conversation.created,
        "title": conversation.title,
        "system": conversation.system,
        "head": conversation.head,
        "messages": [
            {"id": node.id, "parent": node.parent, "created": node.created, "turn": to_json(node.turn)}
            for node in conversation.nodes.values()
        ],
    }


def as_text(conversation: Conversation) -> str:
    """The text of the export, on one line."""
    return json_text(as_object(conversation), compact=True) + "\n"


def write_export(path: Path, conversation: Conversation) -> None:
    """Write the JSON export atomically. Raises: OSError."""
    write_text(path, as_text(conversation))


def read_export(path: Path) -> Conversation:
    """The conversation of a JSON export.

    Raises: DataError for another file, or one that is not consistent; OSError.
    """
    remedy = "a file that macllm chats export --format json made"
    try:
        found = read_json(path)
    except ValueError as error:
        raise DataError(f"{path} is not JSON.", cause=str(error), remedy=remedy) from error
    if not isinstance(found, dict) or found.get("format") != _MARK:
        raise DataError(f"{path} is not a conversation of macllm.", cause="it has other content", remedy=remedy)
    if not isinstance(found.get("version"), int) or found["version"] > _VERSION:
        raise DataError(
            f"{path} is of a newer version of macllm.",
            cause=f"its format is {found.get('version')}, and this macllm knows {_VERSION}",
            remedy="update macllm",
        )
    try:
        return from_object(found)
    except DataError as error:
        raise DataError(f"{path} is not consistent.", cause=error.message, remedy=remedy) from error


def from_object(value: dict[str, Any]) -> Conversation:
    """The conversation that `as_object` made `value` of. Raises: DataError."""
    nodes: dict[str, Node] = {}
    messages = value.get("messages")
    if not isinstance(messages, list):
        raise DataError("messages must be a list")
    for number, message in enumerate(messages, 1):
        node = from_json(Node, message, f"message {number}")
        if node.id in nodes or not _ID.fullmatch(node.id):
            raise DataError(f"message {number} has the id {node.id!r}, which is used twice or is none")
        if node.parent is not None and node.parent not in nodes:
            raise DataError(f"message {number} follows {node.parent}, which is not before it")
        nodes[node.id] = node
    chat, created = from_json(str, value.get("id"), "id"), from_json(float, value.get("created"), "created")
    title, system = value.get("title") or "", value.get("system")
    head = value.get("head")
    if not _ID.fullmatch(chat):
        raise DataError(f"the id {chat!r} is none")
    if not isinstance(title, str) or not (system is None or isinstance(system, str)):
        raise DataError("title and system must be text")
    if head is not None and (not isinstance(head, str) or head not in nodes):
        raise DataError(f"the last message is {head!r}, which is not there")
    return Conversation(chat, created, title, system, nodes, head)


def find_message(conversation: Conversation, name: str) -> str:
    """The id of a message.

    A number names the n-th of the path, anything else the only message whose id begins so. Raises: UsageError.
    """
    path = conversation.path
    if name.isdecimal() and len(name) < _ID_DIGITS:
        found = [path[int(name) - 1].id] if 1 <= int(name) <= len(path) else []
    else:
        found = [node for node in conversation.nodes if node.startswith(name)] if name else []
    if len(found) != 1:
        cause = f"the conversation has {len(path)} messages" if not found else f"{len(found)} messages begin so"
        raise UsageError(f"There is no message {name}.", cause=cause, remedy=f"macllm chats show {conversation.id}")
    return found[0]

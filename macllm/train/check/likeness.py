"""Rows that are equal, or equal but for white space and case, and rows with the same question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from hashlib import blake2b
from typing import Any

from macllm.train.rows import Chat, PlainText, Row, TaggedWords

Key = bytes


def similar_key(row: Row) -> Key:
    """A key that is equal for rows that differ in white space and case only."""
    return _key(_plain(_content(row)))


def question_key(row: Row) -> Key | None:
    """A key that is equal for rows with the same question.

    That is all before the first answer, without a system message; None for texts and for rows without a question.
    """
    if isinstance(row, PlainText | TaggedWords):
        return None
    asked = row.messages if isinstance(row, Chat) else row.prompt
    if not isinstance(asked, str):
        answers = [at for at, message in enumerate(asked) if message["role"] == "assistant"]
        before = asked[: answers[0]] if answers and isinstance(row, Chat) else asked
        asked = "\n".join(_text(message) for message in before if message["role"] != "system")
    plain = _plain(asked)
    return _key(plain) if plain else None


def copies(keys: Iterable[Key]) -> list[tuple[int, int]]:
    """Pairs of numbers: each key that occurred before, and its first occurrence."""
    first: dict[Key, int] = {}
    pairs = ((number, first.setdefault(key, number)) for number, key in enumerate(keys))
    return [(number, at) for number, at in pairs if at != number]


def _content(row: Row) -> tuple[Any, ...]:
    return (row.kind, *(getattr(row, each.name) for each in fields(row) if each.compare and each.name != "where"))


def _key(value: Any) -> Key:
    return blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _plain(value: Any) -> Any:
    """The value with its strings in one case, and one space for each white space."""
    match value:
        case str():
            return " ".join(value.split()).casefold()
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else repr(content or message.get("tool_calls"))

"""Parts of a row that its examples do not have.

No template was given them, or the template did not write them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntFlag

from .alignment import TextTokenizer
from .render import Example
from .rows import Chat, Messages, PlainText, PromptCompletion, Row, weight_of

_THOUGHT_BEGINS, _THOUGHT_ENDS = "<think>", "</think>"


class Unused(IntFlag):
    """Parts of a row that nothing is learned from."""

    NOTHING = 0
    COLUMNS = 1  # tools or variables for a template, of a text that is made without one
    CALLS = 2
    REASONING = 4


def unused(row: Row, examples: Sequence[object], tokenizer: TextTokenizer) -> Unused:
    """The parts of a row that its examples lack.

    Calls and reasoning are searched for in plain examples only.
    """
    found = Unused.COLUMNS if has_unused_columns(row, tokenizer) else Unused.NOTHING
    names, thoughts = set(_called_functions(row)), set(_reasoning(row))
    plain = [each for each in examples if isinstance(each, Example)]
    if plain and (names or thoughts):
        text = _one_line("\n".join(tokenizer.decode(each.tokens.tolist()) for each in plain))
        if any(name not in text for name in names):
            found |= Unused.CALLS
        if any(thought not in text for thought in thoughts):
            found |= Unused.REASONING
    return found


def has_unused_columns(row: Row, tokenizer: TextTokenizer) -> bool:
    """True for a row with tools or variables for a template whose text is made without one."""
    match row:
        case PlainText():
            return bool(row.unused)
        case PromptCompletion(str(), str()) if tokenizer.chat_template is None:
            return bool(row.tools or row.variables)
        case _:
            return False


def _answers(row: Row) -> Messages:
    """The messages of a conversation or of a completion."""
    messages = row.messages if isinstance(row, Chat) else getattr(row, "completion", ())
    return messages if isinstance(messages, list) else []


def _called_functions(row: Row) -> Iterator[str]:
    """Names of the functions that answers call."""
    for message in _answers(row):
        yield from (call["function"]["name"] for call in message.get("tool_calls", ()))


def _reasoning(row: Row) -> Iterator[str]:
    """The reasoning of answers that have a weight, each in one line."""
    for message in _answers(row):
        if not weight_of(message) or message["role"] != "assistant":
            continue
        before, ends, _ = str(message.get("content") or "").partition(_THOUGHT_ENDS)
        for text in (str(message.get("reasoning_content") or ""), before if ends else ""):
            if thought := _one_line(text.strip().removeprefix(_THOUGHT_BEGINS)):
                yield thought


def _one_line(text: str) -> str:
    return " ".join(text.split())

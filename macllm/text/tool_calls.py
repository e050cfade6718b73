"""The calls that a model writes, as names and arguments."""

from __future__ import annotations

import re
from itertools import chain

from macllm.errors import UsageError

from .formats.call import Element, Scan, ToolCall, ToolCallError, Tools
from .formats.readers import refuse
from .formats.shape import Literals
from .formats.table import ELEMENTS, FUNCTION_GEMMA, GEMMA, SECTIONS
from .formats.typed import names_of
from .messages import kind_of

__all__ = ["ToolCall", "ToolCallError", "parse_tool_calls"]

_BETWEEN = re.compile(r"(?:[\s,;]|\](?!<\]))*")
_NAME = re.compile(r"\s*([\w.\-]+)\s*")
_TAGS = Literals(chain.from_iterable((*each.openings, *each.closings, *each.between) for each in SECTIONS))


def parse_tool_calls(text: str, tools: Tools = None) -> list[ToolCall]:
    """The tool calls in `text`, in order, in any known format, with or without tags.

    Arguments in raw text get their types from the schemas of `tools`; an argument without a type, or not of its type,
    stays text. Raises `ToolCallError` for text that is not a call.
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"parse_tool_calls takes a string, and this is {kind_of(text)}.",
            remedy="for each: [call for text in completion.tool_calls for call in parse_tool_calls(text, tools)]",
        )
    calls: list[ToolCall] = []
    at = _skip(text, 0)
    while at < len(text):
        found = _element(text, at)
        if found is None:
            name = _NAME.fullmatch(text, at)
            if name is None or (tools and name[1] not in names_of(tools)) or calls:
                refuse("no known format begins there", text[at:])
            return [ToolCall(name[1])]
        element, at = found
        ends_itself = element.brackets or (element.closing and text.find(element.closing, at) >= 0)
        end, _ = Scan(element, () if ends_itself else _TAGS.all).read(text, at, final=True)
        calls.append(element.read(text[at:end], tools))
        at = _skip(text, end)
    return calls


def _element(text: str, at: int) -> tuple[Element, int] | None:
    """The format of the call at `at`, and the call's start."""
    for element in ELEMENTS:
        if element.shape.end(text, at) is not None:
            start = element.lead_shape.end(text, at) or at
            return (FUNCTION_GEMMA if element is GEMMA and "<escape>" in text else element), start
    return None


def _skip(text: str, at: int) -> int:
    """The position after white space, commas and tags."""
    while True:
        space = _BETWEEN.match(text, at)
        at = space.end() if space else at
        tag = _TAGS.match(text, at)
        if tag is None:
            return at
        at = tag.end()

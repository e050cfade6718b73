"""The calls that a model writes, as names and arguments."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from macllm.errors import MacllmError

from .json_data import is_list, is_object

_MISTRAL = "[TOOL_CALLS]"
_MISTRAL_ARGUMENTS = "[ARGS]"
_BETWEEN = " \t\r\n;,"


class ToolCallError(MacllmError):
    """A tool call that does not say what to call; `cause` says where it breaks."""


@dataclass(frozen=True)
class ToolCall:
    """A function to call with keyword arguments. `id` is the model's own, where it gave one."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    id: str | None = None


def parse_tool_calls(text: str) -> list[ToolCall]:
    """The calls in a "tool_call" part, in order.

    Reads JSON objects one after another or in a list, with "arguments" (Hermes, Qwen, Mistral, Phi) or
    "parameters" (Llama 3), and Mistral's `name[ARGS]{…}`. Raises `ToolCallError`: no call is left out silently.
    """
    calls: list[ToolCall] = []
    for part in text.split(_MISTRAL):
        part = part.strip(_BETWEEN)
        if not part:
            continue
        name, found, arguments = part.partition(_MISTRAL_ARGUMENTS)
        if found:
            calls.append(_call({"name": name.strip(), "arguments": _values(arguments)[0]}))
        else:
            calls += [_call(item) for value in _values(part) for item in (value if is_list(value) else [value])]
    return calls


def _values(text: str) -> list[Any]:
    """The JSON values that stand one after another in `text`, at least one."""
    decoder = json.JSONDecoder(strict=False)  # models write line breaks inside strings
    values: list[Any] = []
    at = len(text) - len(text.lstrip(_BETWEEN))
    while at < len(text) or not values:
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise ToolCallError(
                "The model wrote a tool call that is not valid JSON.",
                cause=f"{error} in {text[:200]!r}",
                remedy="ask again, at a lower temperature",
            ) from error
        values.append(value)
        while at < len(text) and text[at] in _BETWEEN:
            at += 1
    return values


def _call(value: Any) -> ToolCall:
    if is_object(value) and is_object(value.get("function")):
        value = {"id": value.get("id"), **value["function"]}
    if not is_object(value) or not isinstance(value.get("name"), str) or not value["name"]:
        raise _shape("it has no name", value)
    arguments: Any = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = _values(arguments)[0] if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not is_object(arguments):
        raise _shape("its arguments are no object", value)
    identity = value.get("id")
    return ToolCall(value["name"], arguments, identity if isinstance(identity, str) else None)


def _shape(cause: str, value: Any) -> ToolCallError:
    return ToolCallError(
        "The model wrote a tool call that cannot be read.",
        cause=f"{cause}: {json.dumps(value, ensure_ascii=False)[:200]}",
        remedy="ask again, at a lower temperature",
    )

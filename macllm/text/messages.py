"""Validation and normalization of messages and tools in a request.

The form is that of OpenAI's chat completions, in plain JSON types: `content` is a string, a list of parts or None,
`tool_calls` a list of {"type": "function", "function": {"name", "arguments"}}. Normalization is idempotent.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard, cast

from macllm.errors import UsageError

from .json_data import is_list, is_object, list_in, object_in

_EXAMPLE = 'write messages as [{"role": "user", "content": "..."}]'
_CALL_EXAMPLE = 'write a call as {"type": "function", "function": {"name": "...", "arguments": {...}}}'
_TOOL_EXAMPLE = (
    'write tools as [{"type": "function", "function": {"name": "...", "description": "...", "parameters": {...}}}]'
)
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_RESULT_ROLES = ("tool", "tool_results", "tool_response", "ipython", "function", "observation")  # content of any shape
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_THOUGHT_PARTS = ("thinking", "reasoning")


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """Normalize a conversation to the form described above; the argument is not modified.

    Null fields are dropped. Text parts under other names become "text" parts, `function_call` becomes one of the
    `tool_calls`, the role "function" becomes "tool". Pydantic models and dataclasses become JSON objects.
    Raises `UsageError` with the position of an invalid value, such as `messages[2]`.
    """
    if isinstance(messages, str | bytes):
        raise UsageError("The conversation is a string, not a list of messages.", remedy=_EXAMPLE)
    if isinstance(messages, Mapping):
        raise UsageError("The conversation is one object, not a list of messages.", remedy="put the message in a list")
    if not isinstance(messages, Iterable) or _is_model(messages):
        raise UsageError(f"The conversation is {kind_of(messages)}, not a list of messages.", remedy=_EXAMPLE)
    read = [_message(message, f"messages[{at}]") for at, message in enumerate(cast("Iterable[Any]", messages))]
    if not read:
        raise UsageError("The conversation has no messages.", remedy='send one: {"role": "user", "content": "..."}')
    return read


def read_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Normalize tools to {"type": "function", "function": {"name", …}}; None without tools.

    The function's schema may be given alone, as {"name", "description", "parameters"}.
    Raises `UsageError` with the position of an invalid value, such as `tools[0]`.
    """
    if tools is None:
        return None
    if isinstance(tools, Mapping) or _is_model(tools):
        raise UsageError("tools is one object, not a list of them.", remedy="put the tool in a list: tools=[...]")
    if isinstance(tools, str | bytes) or not isinstance(tools, Iterable):
        raise UsageError(f"tools is {kind_of(tools)}, not a list.", remedy=_TOOL_EXAMPLE)
    return [_tool(tool, f"tools[{at}]") for at, tool in enumerate(cast("Iterable[Any]", tools))]


def plain(value: Any) -> Any:
    """Copy a value to plain JSON types, so that templates get no other objects."""
    if value is None or type(value) in (str, int, float, bool, Foreign):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value)
        return {plain(key): plain(items[key]) for key in items}
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast("Sequence[Any]", value)]
    if _is_model(value):
        return plain(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return Foreign(f"<{type(value).__name__}>")


class Foreign(str):
    """Placeholder for an object of a type that JSON lacks; rejected as content, name or text."""


def _is_model(value: Any) -> bool:
    """True for a pydantic model, such as OpenAI's client returns."""
    return not isinstance(value, type) and callable(getattr(value, "model_dump", None))


def kind_of(value: Any) -> str:
    """Describe the type of a value in words, for an error."""
    if isinstance(value, Foreign):
        return f"of type {value[1:-1]}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    names = {"NoneType": "null", "int": "a number", "float": "a number", "bool": "a boolean", "str": "a string"}
    names |= {"list": "a list", "dict": "an object"}
    return names.get(type(value).__name__, f"of type {type(value).__name__}")


def _object(value: Any, place: str, remedy: str) -> dict[str, Any]:
    """Copy an object to plain JSON, without null fields. Raises UsageError for other values."""
    try:
        read = plain(value)
    except RecursionError as error:
        raise UsageError(f"{place} contains itself, or is nested too deeply.", remedy=remedy) from error
    if not is_object(read):
        raise UsageError(f"{place} is {kind_of(value)}, not an object.", remedy=remedy)
    return {name: field for name, field in read.items() if field is not None}


def _message(value: Any, place: str) -> dict[str, Any]:
    message = _object(value, place, _EXAMPLE)
    role = message.get("role")
    if not _is_text(role) or not role:
        found = "has no role" if role is None else f"has a role that is {kind_of(role) if role != '' else 'empty'}"
        raise UsageError(f"{place} {found}.", remedy='roles are "system", "user", "assistant" and "tool"')
    if "function_call" in message and not message.get("tool_calls"):  # OpenAI's form before tool_calls
        message["tool_calls"] = [{"type": "function", "function": message["function_call"]}]
    message.pop("function_call", None)
    calls = message.pop("tool_calls", [])
    if not is_list(calls):
        raise UsageError(f"{place} has tool_calls that are {kind_of(calls)}, not a list.", remedy=_CALL_EXAMPLE)
    if calls:
        message["tool_calls"] = [_call(call, f"{place}.tool_calls[{at}]") for at, call in enumerate(calls)]
    if role == "function":  # OpenAI's name for a result before tool_calls
        message["role"] = role = "tool"
    thought = _content(message, role, place)
    reasoning = next((message[name] for name in _REASONING_FIELDS if name in message), thought)
    if message["content"] is None and not calls and reasoning is None:
        raise UsageError(f"{place} has neither content nor tool calls.", remedy='give it "content", which may be ""')
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _content(message: dict[str, Any], role: str, place: str) -> str | None:
    """Normalize a message's content in place; returns the reasoning among its parts."""
    content = message.get("content")
    if is_object(content) and "type" in content and role not in _RESULT_ROLES:
        content = [content]
    if is_list(content) and (role not in _RESULT_ROLES or _are_parts(content)):
        parts = [_part(part, f"{place}.content[{at}]") for at, part in enumerate(content)]
        message["content"] = parts or None
        thoughts = [str(part["thinking"]) for part in parts if part["type"] == "thinking"]
        return "".join(thoughts) if thoughts else None
    if content is not None and not _is_text(content) and (role not in _RESULT_ROLES or not _is_structure(content)):
        raise UsageError(
            f"{place} has content that is {kind_of(content)}, not a string.",
            remedy='give a string, or parts: [{"type": "text", "text": "..."}]',
        )
    message["content"] = content
    return None


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and not isinstance(value, Foreign)


def _is_structure(value: Any) -> bool:
    return is_object(value) or is_list(value)


def _are_parts(content: list[Any]) -> bool:
    """True for a tool result in content parts; False for any other list."""
    known = {*_TEXT_PARTS, *_THOUGHT_PARTS, "image", "image_url", "input_image"}
    return bool(content) and all(is_object(part) and part.get("type") in known for part in content)


def _part(part: Any, place: str) -> dict[str, Any]:
    if _is_text(part):
        return {"type": "text", "text": part}
    if not is_object(part):
        raise UsageError(f"{place} is {kind_of(part)}, not a part.", remedy='write {"type": "text", "text": "..."}')
    kind = part.get("type", "text" if "text" in part else None)
    if kind in _THOUGHT_PARTS:
        inside = part.get("thinking", part.get("text", ""))
        texts = [str(object_in(each).get("text", "")) if is_object(each) else str(each) for each in list_in(inside)]
        return {"type": "thinking", "thinking": inside if isinstance(inside, str) else "".join(texts)}
    if kind not in _TEXT_PARTS:
        raise UsageError(
            f"{place} is {f'a part of type {kind!r}' if isinstance(kind, str) else 'a part without a type'}, not text.",
            cause="macllm supports text only",
            remedy='leave it out, or describe it in words: {"type": "text", "text": "..."}',
        )
    text = part.get(_TEXT_PARTS[kind])
    if not _is_text(text):
        raise UsageError(f"{place} is a text part whose text is {kind_of(text)}.", remedy="give its text")
    return {**part, "type": "text", "text": text}


def _call(value: Any, place: str) -> dict[str, Any]:
    call = _object(value, place, _CALL_EXAMPLE)
    if "function" in call:
        function = _object(call["function"], f"{place}.function", _CALL_EXAMPLE)
    else:
        function = {name: call.pop(name) for name in ("name", "arguments", "parameters") if name in call}
    if "arguments" not in function and is_object(function.get("parameters")):
        function["arguments"] = function.pop("parameters")
    if not _is_text(function.get("name")) or not function["name"]:
        raise UsageError(f"{place} names no function.", remedy=_CALL_EXAMPLE)
    arguments = function.get("arguments", {})
    if not _is_text(arguments) and not is_object(arguments):
        raise UsageError(
            f"{place} has arguments that are {kind_of(arguments)}, not an object or its JSON text.",
            remedy=_CALL_EXAMPLE,
        )
    function["arguments"] = {} if isinstance(arguments, str) and not arguments.strip() else arguments
    return _as_function(call, function)


def arguments_in(text: str) -> dict[str, Any] | None:
    """Parse the JSON text of a call's arguments; None if it is not an object."""
    try:
        value = json.loads(text, strict=False)  # models write line breaks inside strings
    except (ValueError, RecursionError):
        return None
    return value if is_object(value) else None


def _tool(value: Any, place: str) -> dict[str, Any]:
    if callable(value) and not _is_model(value):
        raise UsageError(
            f"{place} is {kind_of(value)}, not the description of a function.",
            cause="a function is described to a model by its JSON schema",
            remedy=_TOOL_EXAMPLE,
        )
    tool = _object(value, place, _TOOL_EXAMPLE)
    if "function" not in tool and "name" in tool:  # bare, or OpenAI's flat form of the Responses API
        tool = {"type": "function", "function": {name: tool[name] for name in tool if name != "type"}}
    if "function" not in tool:
        kind = tool.get("type")
        found = f"has the type {kind!r} and no function" if isinstance(kind, str) else "describes no function"
        raise UsageError(f"{place} {found}.", remedy=_TOOL_EXAMPLE)
    function = _object(tool["function"], f"{place}.function", _TOOL_EXAMPLE)
    if not _is_text(function.get("name")) or not function["name"]:
        raise UsageError(f"{place} is a function without a name.", remedy=_TOOL_EXAMPLE)
    if "parameters" not in function and "input_schema" in function:  # Anthropic's name for it
        function = {("parameters" if name == "input_schema" else name): each for name, each in function.items()}
    if "parameters" in function and not is_object(function["parameters"]):
        found = kind_of(function["parameters"])
        raise UsageError(f"{place} has parameters that are {found}, not a JSON schema.", remedy=_TOOL_EXAMPLE)
    return _as_function(tool, function)


def _as_function(outer: dict[str, Any], function: dict[str, Any]) -> dict[str, Any]:
    """A tool or call with its function; the order of fields is kept, as templates print them in order."""
    return {**({} if "type" in outer else {"type": "function"}), **outer, "function": function}

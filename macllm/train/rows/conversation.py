"""Messages and tools of a row, in the form that chat uses (`macllm.text.messages`)."""

from __future__ import annotations

import json
from typing import Any

from macllm.errors import DataError, UsageError
from macllm.text.messages import arguments_in, read_messages, read_tools

from .kinds import Messages

# ShareGPT's roles, and those of tools built on it.
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_SPEAKERS = {name: _ROLES[name] for name in ("human", "gpt", "chatgpt")}  # roles that no template has
_SPEAKING = ("system", "developer", "user", "assistant")  # content is text or its parts
_FLAGS = ("train", "training", "loss")  # of axolotl and ms-swift: true for a message that is learned
_LEAST_WEIGHT, _MOST_WEIGHT = 1e-6, 1e6  # sums of weighted losses stay within float32
_DEEPEST = 100  # lists and objects within one another
_CONTAINERS = (dict, list, tuple)
# Variables that training sets itself.
_RESERVED = ("messages", "tools", "add_generation_prompt", "now", "template", "tokenize", "continue_final_message")
_EXAMPLE = 'messages: [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
_CALL = 'a call is {"name": "...", "arguments": {...}}'


def messages_in(value: Any, where: str) -> Messages:
    """The normalized messages of a row, with their loss weights: 0 for one marked as not learned.

    Raises DataError for anything else, for images, and for arguments of a call that are not a JSON object.
    """
    if not isinstance(value, list):
        raise DataError(f"{where}: a conversation must be a list of messages", remedy=_EXAMPLE)
    own = map(without_nulls if _is_of_arrow(value) else _without_null_fields, value)
    given = [_role_and_content(message, f"{where}: messages[{at}]") for at, message in enumerate(own)]
    weights = [_taken_weight(message, f"{where}: messages[{at}]") for at, message in enumerate(given)]
    try:
        messages = read_messages(given)
    except UsageError as error:
        raise DataError(f"{where}: {error.message}", cause=error.cause, remedy=error.remedy) from error
    for at, message in enumerate(messages):
        for call in message.get("tool_calls", ()):
            _check_arguments(call["function"]["arguments"], f"{where}: messages[{at}]")
    return [
        message if weight is None else {**message, "weight": weight}
        for message, weight in zip(messages, weights, strict=True)
    ]


def tools_in(value: Any, where: str) -> list[Any] | None:
    """The tools of a row, a list or its JSON text; None without any."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: tools is text that is not JSON", cause=str(error)) from error
        check_depth(value, f"{where}: tools")
    else:
        value = without_nulls(value)
    if not value and value in (None, "", []):
        return None
    try:
        return read_tools(value) or None
    except UsageError as error:
        raise DataError(f"{where}: {error.message}", cause=error.cause, remedy=error.remedy) from error


def variables_in(value: Any, where: str) -> dict[str, Any] | None:
    """The variables that a row gives to its template (TRL's `chat_template_kwargs`); None without any."""
    variables = without_nulls(value)
    if variables is None or variables == {}:
        return None
    if not isinstance(variables, dict):
        raise DataError(f"{where}: chat_template_kwargs is not an object", remedy='{"enable_thinking": false}')
    if taken := [name for name in _RESERVED if name in variables]:
        raise DataError(
            f"{where}: chat_template_kwargs cannot set {taken[0]}",
            cause="training sets it itself",
            remedy="leave it out" if taken[0] != "tools" else "a column tools",
        )
    return variables


def check_depth(value: Any, place: str) -> None:
    """Refuse values nested more deeply than later steps, which recurse, can handle."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(_DEEPEST):
        level = [item for each in level for item in (each.values() if isinstance(each, dict) else each)
                 if isinstance(item, _CONTAINERS)]  # fmt: skip
        if not level:
            return
    raise DataError(f"{place} is nested too deeply", cause=f"it has more than {_DEEPEST} levels")


def without_nulls(value: Any) -> Any:
    """`value` without null fields of objects, on all levels: Arrow adds one for each field of another row."""
    if isinstance(value, dict):
        return {name: without_nulls(field) for name, field in value.items() if field is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _is_of_arrow(messages: list[Any]) -> bool:
    """True if Arrow may have added null fields.

    Then all messages have the same fields, or some other than a content are null.
    """
    fields = [each for each in messages if isinstance(each, dict)]
    added = any(value is None and name != "content" for each in fields for name, value in each.items())
    return added or len({frozenset(each) for each in fields}) < 2


def _without_null_fields(message: Any) -> Any:
    """A message with its null fields left out.

    Nulls in a call's arguments and in a tool's result are values.
    """
    if not isinstance(message, dict):
        return message
    speaks = message.get("role") in _SPEAKING
    return {
        name: without_nulls(field) if speaks and name == "content" else field
        for name, field in message.items()
        if field is not None
    }


def _role_and_content(message: Any, place: str) -> Any:
    """A message of ShareGPT's form, {"from", "value"}, with role and content; others with a role of chat."""
    if not isinstance(message, dict) or "from" not in message or "role" in message:
        speaker = message.get("role") if isinstance(message, dict) else None
        return {**message, "role": _SPEAKERS[speaker]} if isinstance(speaker, str) and speaker in _SPEAKERS else message
    role = _ROLES.get(message["from"]) if isinstance(message["from"], str) else None
    if role is None:
        raise DataError(
            f"{place} is from {message['from']!r}, which is no known role", remedy=f"one of {', '.join(_ROLES)}"
        )
    rest = {name: field for name, field in message.items() if name not in ("from", "value")}
    value = message.get("value")
    if message["from"] != "function_call":
        return {"role": role, **rest, **({} if value is None else {"content": value})}
    call = arguments_in(value) if isinstance(value, str) else value
    if not isinstance(call, dict):
        raise DataError(f"{place} is a function_call that is not a JSON object", remedy=_CALL)
    check_depth(call, place)
    return {"role": role, **rest, "tool_calls": [call]}


def _taken_weight(message: Any, place: str) -> float | None:
    """Remove the weight and the flags from a message and return its weight, None without any."""
    if not isinstance(message, dict):
        return None
    flags = [flag for name in _FLAGS if (flag := _taken_flag(message, name, place)) is not None]
    weight = message.pop("weight", None)
    if weight is not None and (
        isinstance(weight, bool)
        or not isinstance(weight, int | float)
        or not (weight == 0 or _LEAST_WEIGHT <= weight <= _MOST_WEIGHT)
    ):
        raise DataError(
            f"{place} has the weight {repr(weight)[:40]}",
            remedy=f"0 (not learned), 1, or another number from {_LEAST_WEIGHT} to {_MOST_WEIGHT:.0f}",
        )
    if any(flags) and message.get("role") != "assistant":
        raise DataError(
            f"{place} is marked as learned, and is no answer of the assistant",
            cause="macllm learns the assistant's messages, or with mask_prompt = false all tokens",
            remedy="leave the mark out",
        )
    if not all(flags):
        return 0.0
    return None if weight is None else float(weight)


def _taken_flag(message: dict[str, Any], name: str, place: str) -> bool | None:
    """Remove a flag from a message and return it, None without one."""
    if f"{name}_detail" in message:
        raise DataError(f"{place} has {name}_detail", cause="macllm learns whole messages", remedy=f'"{name}": false')
    if message.get(name) in (0, 1):
        return bool(message.pop(name))
    if name in message and name != "loss":  # which may be a number that was measured
        raise DataError(f"{place} has {name} = {repr(message[name])[:40]}", remedy="true or false")
    return None


def _check_arguments(arguments: Any, place: str) -> None:
    read = arguments_in(arguments) if isinstance(arguments, str) else arguments
    if read is None:
        raise DataError(
            f"{place} has arguments that are not a JSON object: {arguments[:80]!r}",
            remedy='fix the JSON text, or give an object: "arguments": {"name": "value"}',
        )
    check_depth(read, f"{place}: arguments")
    try:
        json.dumps(read, allow_nan=False)
    except ValueError as error:
        raise DataError(
            f"{place} has arguments with a number that JSON lacks", cause=str(error), remedy="null, or a text"
        ) from error

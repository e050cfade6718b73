"""Conversion of a conversation to the form that a chat template expects, by trial renderings.

Some templates print `content`, some iterate over its parts; some recognize a call by `content is none`, some would
print "None"; some print `arguments` as text or as JSON, some iterate over its items. The rendering is checked for
missing or garbled content; if the check fails, another form is tried.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

from jinja2 import nodes

from macllm.errors import UsageError

from .json_data import is_list, is_object
from .messages import arguments_in
from .roles import Messages, joined, with_short_ids

_NULL = re.compile(r"\b(?:None|null)\b")
_LONG = 16  # characters of a text that occurs in a template by no chance
_MARK = "a user's own words"
Render = Callable[[Messages], str]


def write_conversation(messages: Messages, render: Render, asks_for_null: Callable[[], bool]) -> str:
    """Render the messages in the first form whose rendering is complete and correct.

    `messages` are as `read_messages` returns them; `asks_for_null` returns True for a template that tests
    `content is none`. If every form fails, raises the error of the first.
    """
    try:
        return _with_results(messages, render, asks_for_null)
    except UsageError:
        numbered = with_short_ids(messages)
        if numbered == messages:
            raise
        try:
            return _with_results(numbered, render, asks_for_null)
        except UsageError:  # the ids were not the problem
            pass
        raise


def _with_results(messages: Messages, render: Render, asks_for_null: Callable[[], bool]) -> str:
    """Render tool results that are objects or lists as JSON."""
    results = {at: _json(content) for at, content in enumerate(map(_content, messages)) if _is_structure(content)}
    if not results:
        return _with_calls(messages, render, asks_for_null)

    def form(make: Callable[[Any, str], Any]) -> Messages:
        return [
            {**message, "content": make(message["content"], results[at])} if at in results else message
            for at, message in enumerate(messages)
        ]

    try:
        text = _with_calls(form(_structure), render, asks_for_null)
    except UsageError:
        text = ""
    if text and all(result in text for result in results.values()):
        return text
    return _with_calls(form(lambda _, result: result), render, asks_for_null)


def _content(message: dict[str, Any]) -> Any:
    return message.get("content")


def _with_calls(messages: Messages, render: Render, asks_for_null: Callable[[], bool]) -> str:
    """Render in a form that loses no call and prints no null."""
    names = [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]
    nulls = any(message.get("content") is None for message in messages)
    texts: list[str] = []
    error: UsageError | None = None
    for form in _forms(messages, bool(names), nulls, asks_for_null):
        try:
            texts.append(_with_texts(form, render))
        except UsageError as raised:
            error = error or raised
            continue
        if _written(names, texts[-1]) == len(names) and not (nulls and _NULL.search(texts[-1])):
            return texts[-1]
    if texts:
        # nulls of the conversation itself occur in every form that has all calls
        found = [(-_written(names, text), len(_NULL.findall(text)) if nulls else 0) for text in texts]
        return texts[found.index(min(found))]
    assert error is not None
    raise _named(messages, error) from error


def _written(names: list[str], text: str) -> int:
    """Number of calls with their function name in the text."""
    return sum(min(text.count(name), names.count(name)) for name in set(names))


def _named(messages: Messages, error: UsageError) -> UsageError:
    """A more precise error if a call's arguments are not a JSON object, else `error`."""
    for at, message in enumerate(messages):
        for number, call in enumerate(message.get("tool_calls", ())):
            text = call["function"]["arguments"]
            if isinstance(text, str) and arguments_in(text) is None:
                return UsageError(
                    f"messages[{at}].tool_calls[{number}] has arguments that are not a JSON object: {text[:80]!r}.",
                    cause=f"the model's chat template writes only objects ({error.cause})",
                    remedy="fix the JSON text, or give the arguments as an object",
                )
    return error


def _forms(messages: Messages, calls: bool, nulls: bool, asks_for_null: Callable[[], bool]) -> Iterator[Messages]:
    """The forms to try: arguments as objects, then as text; in each, null content kept, left out, empty.

    Last, empty content of calls becomes null.
    """
    fields: list[dict[str, Any]] = [{}]
    if nulls:
        fields = [*([{"content": None}] if asks_for_null() else []), {}, {"content": ""}]
    for form in (_as_objects, _as_texts)[: 1 + calls]:
        converted = form(messages)
        for field in fields:
            yield [
                _with_content(message, field) if message.get("content") is None else message for message in converted
            ]
        if any(map(_is_empty_call, converted)) and asks_for_null():
            none = {"content": None}
            yield [
                _with_content(each, none) if each.get("content") is None or _is_empty_call(each) else each
                for each in converted
            ]


def _is_empty_call(message: dict[str, Any]) -> bool:
    return "tool_calls" in message and message.get("content") == ""


def _with_content(message: dict[str, Any], field: dict[str, Any]) -> dict[str, Any]:
    """The message with `field` in place of its content."""
    return {**{name: value for name, value in message.items() if name != "content"}, **field}


class _PrintedAsJson:
    """Mixin for a JSON value that prints as its JSON text."""

    _text: str

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


class WrittenObject(_PrintedAsJson, dict[str, Any]):
    """Arguments of a call, or an object returned by a tool."""

    def __init__(self, values: dict[str, Any], text: str) -> None:
        super().__init__(values)
        self._text = text


class WrittenList(_PrintedAsJson, list[Any]):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A list returned by a tool."""

    def __init__(self, values: list[Any], text: str) -> None:
        super().__init__(values)
        self._text = text


def _structure(value: Any, text: str) -> Any:
    return WrittenObject(value, text) if is_object(value) else WrittenList(value, text)


def _is_structure(content: Any) -> bool:
    """True for an object or list returned by a tool."""
    return is_object(content) or (is_list(content) and not _is_parts(content))


def _as_objects(messages: Messages) -> Messages:
    """The messages with arguments as objects; text that is not a JSON object stays text."""

    def convert(arguments: Any) -> Any:
        if is_object(arguments):
            return WrittenObject(arguments, _json(arguments))
        values = arguments_in(arguments)
        return arguments if values is None else WrittenObject(values, arguments)

    return _convert_arguments(messages, convert)


def _as_texts(messages: Messages) -> Messages:
    """The messages with arguments as JSON text."""
    return _convert_arguments(messages, lambda arguments: _json(arguments) if is_object(arguments) else arguments)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _convert_arguments(messages: Messages, convert: Callable[[Any], Any]) -> Messages:
    def call(value: dict[str, Any]) -> dict[str, Any]:
        function = value["function"]
        return {**value, "function": {**function, "arguments": convert(function["arguments"])}}

    return [
        {**message, "tool_calls": [call(value) for value in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def asks_for_null(template: nodes.Template) -> bool:
    """True for a template that tests the content of a message for null, under any name."""
    names = {"content"}
    assignments = [
        (each.target.name, each.node) for each in template.find_all(nodes.Assign) if isinstance(each.target, nodes.Name)
    ]
    macros = {macro.name: macro for macro in template.find_all(nodes.Macro)}
    for call in template.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in macros:
            named = zip(macros[call.node.name].args, call.args, strict=False)
            assignments += [(argument.name, value) for argument, value in named]
    for _ in assignments:
        found = {name for name, value in assignments if _mentions(value, names)}
        if found <= names:
            break
        names |= found
    tested = [test.node for test in template.find_all(nodes.Test) if test.name == "none"]
    for compare in template.find_all(nodes.Compare):
        sides = [compare.expr, *(operand.expr for operand in compare.ops)]
        if any(isinstance(side, nodes.Const) and side.value is None for side in sides):
            tested += sides
    return any(_mentions(node, names) for node in tested)


def _mentions(node: nodes.Node, names: set[str]) -> bool:
    def each(node: nodes.Node) -> Iterator[nodes.Node]:
        yield node
        yield from node.find_all((nodes.Name, nodes.Getattr, nodes.Const))

    for part in each(node):
        if isinstance(part, nodes.Name) and part.name in names:
            return True
        if isinstance(part, nodes.Getattr) and part.attr == "content":
            return True
        if isinstance(part, nodes.Const) and part.value == "content":
            return True
    return False


class _Part(dict[str, Any]):
    """A content part that records in `taken` if the template read its text."""

    taken = False

    def __getitem__(self, name: str) -> Any:
        self.taken = self.taken or name == "text"
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.taken = self.taken or name == "text"
        return super().get(name, default)


class _Parts(list[_Part]):
    """Content parts that record in `written` if the template printed the whole list."""

    written = False

    def __str__(self) -> str:
        self.written = True
        return joined(self)

    __repr__ = __str__


def _is_parts(content: object) -> TypeGuard[list[dict[str, Any]]]:
    """True for content parts; False for text, and for a list returned by a tool."""
    return (
        is_list(content)
        and bool(content)
        and all(is_object(part) and part.get("type") in ("text", "thinking") for part in content)
    )


def _walked(parts: _Parts) -> bool:
    """True if the template read the text of each part and did not print the whole list."""
    return not parts.written and all(part.taken or "text" not in part for part in parts)


def _with_texts(messages: Messages, render: Render) -> str:
    """Render; a template that ignores text content gets content parts instead."""
    error = None
    text = ""
    contents = [message.get("content") for message in messages if message["role"] == "user"]
    user_texts = [content.strip() for content in contents if isinstance(content, str)]
    is_read = max(map(len, user_texts), default=_LONG) >= _LONG or _reads_texts(messages, render)
    try:
        text = _with_parts(messages, render)
    except UsageError as raised:
        error = raised
    if error is not None or not is_read or not _all_in(user_texts, text):
        form = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if isinstance(message.get("content"), str)
            else message
            for message in messages
        ]
        try:
            in_parts = _with_parts(form, render)
        except UsageError:
            in_parts = ""
        if in_parts and _all_in(user_texts, in_parts):
            return in_parts
    if error is not None:
        raise error
    return text


def _reads_texts(messages: Messages, render: Render) -> bool:
    """True for a template that writes text content.

    A short one may stand in what the template writes besides.
    """
    marked = [
        {**message, "content": _MARK} if message["role"] == "user" and isinstance(message.get("content"), str)
        else message
        for message in messages
    ]  # fmt: skip
    try:
        return _MARK in _with_parts(marked, render)
    except UsageError:
        return True


def _all_in(contents: list[str], text: str) -> bool:
    """True for a text that contains all contents, in any order."""
    at = 0
    for content in contents:  # usually in order, so that one pass over a long text is enough
        found = text.find(content, at)
        if found < 0 and content not in text:
            return False
        at = max(at, found)
    return True


def _with_parts(messages: Messages, render: Render) -> str:
    """Render; content parts are joined to text for roles whose parts the template does not iterate over.

    An exception does not say which content caused it: then the role of the first unread content is joined.
    """
    left = {at for at, message in enumerate(messages) if _is_parts(message.get("content"))}
    form = [
        {**message, "content": _Parts(_Part(part) for part in message["content"])} if at in left else message
        for at, message in enumerate(messages)
    ]
    text = None
    while True:
        try:
            text = render(form)
        except UsageError:
            if not left or text is not None:
                if text is not None:
                    return text
                raise
            first = min((at for at in left if not _walked(form[at]["content"])), default=min(left))
            wrong = {at for at in left if messages[at]["role"] == messages[first]["role"]}
        else:
            wrong = {at for at in left if not _walked(form[at]["content"])}
            if not wrong:
                return text
        left -= wrong
        for at in wrong:
            form[at] = {**messages[at], "content": joined(messages[at]["content"])}

"""Readers: parse the raw text of one call to its name and arguments, for each format."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from ..json_data import is_object
from .call import ToolCall, ToolCallError, Tools
from .typed import MISSING, literal, names_of, properties_of, typed

_AGAIN = "ask again, at a lower temperature"
_OWN_KEYS = {"name", "tool_name", "arguments", "parameters", "function", "id", "type", "tool_call_id"}


def refuse(cause: str, raw: str) -> NoReturn:
    """Raise ToolCallError with this cause."""
    raise ToolCallError(
        "The model wrote a tool call that cannot be read.", cause=f"{cause}: {raw[:200]!r}", remedy=_AGAIN
    )


def json_value(text: str) -> Any:
    """Parse JSON, with line breaks in strings allowed, or a Python literal. Raises ToolCallError."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        value = literal(text.strip())
        if value is not MISSING:
            return value
        raise ToolCallError(
            "The model wrote a tool call that is not valid JSON.", cause=f"{error} in {text[:200]!r}", remedy=_AGAIN
        ) from error


def read_json(raw: str, tools: Tools) -> ToolCall:
    """Parse a call in JSON: name and arguments under their usual keys, or one key that names the tool."""
    value = json_value(raw)
    if is_object(value) and is_object(value.get("function")):
        value = {"id": value.get("id"), **value["function"]}
    if not is_object(value):
        refuse("it is not an object", raw)
    if len(value) == 1 and not _OWN_KEYS & value.keys():
        ((name, arguments),) = value.items()
        if is_object(arguments) and (not tools or name in names_of(tools)):
            return ToolCall(name, arguments)
    name = value.get("name", value.get("tool_name", value.get("function")))
    if not isinstance(name, str) or not name:
        refuse("it has no name", raw)
    identity = value.get("id", value.get("tool_call_id"))
    arguments = _arguments(value.get("arguments", value.get("parameters")), raw)
    return ToolCall(name, arguments, identity if isinstance(identity, str) else None)


def refuse_code(raw: str, tools: Tools) -> NoReturn:
    """Raise ToolCallError for a program that a model wrote for an interpreter instead of a call."""
    refuse("it is code for an interpreter", raw)


def _arguments(value: Any, raw: str) -> dict[str, Any]:
    if isinstance(value, str):
        value = json_value(value) if value.strip() else {}
    if value is None:
        return {}
    return value if is_object(value) else refuse("its arguments are not an object", raw)


@dataclass(frozen=True)
class Named:
    """Reader for a name and JSON arguments. `pattern` has the groups name, arguments and, optionally, id."""

    pattern: str  # compiled on first use: most processes read no calls

    def __call__(self, raw: str, tools: Tools) -> ToolCall:
        """The call. Raises ToolCallError."""
        match = re.fullmatch(self.pattern, raw.strip())
        if match is None:
            refuse("its name or arguments are missing", raw)
        name, arguments = match["name"].strip(), match["arguments"].strip()
        nothing = not arguments and name in names_of(tools) and not properties_of(tools, name)
        return ToolCall(
            name,
            {} if nothing else _arguments(json_value(arguments), raw),
            match.groupdict().get("id") or None,
        )


def _own_lines(text: str) -> str:
    """`text` without the line breaks around it, if it begins with one."""
    first = _LINE_BREAK.match(text)
    return text if first is None else _LAST_BREAK.sub("", text[first.end() :])


_LINE_BREAK = re.compile(r"\r?\n")
_LAST_BREAK = re.compile(r"\r?\n\Z")


@dataclass(frozen=True)
class Tagged:
    """Reader for a name and one pair of tags around the raw text of each argument.

    `head` has the group name; `opening` the group key and, optionally, type. A value ends at `closing` if white space
    and another opening or `tail` follow. With `guess`, a value of unknown type is parsed as JSON if possible.
    """

    head: str  # patterns are compiled on first use: most processes read no calls
    opening: str
    closing: str
    tail: str
    guess: bool = False
    lines: bool = False  # each value is on separate lines

    def __call__(self, raw: str, tools: Tools) -> ToolCall:
        """The call. Raises ToolCallError."""
        head = re.match(self.head, raw)
        if head is None:
            refuse("it has no name", raw)
        name = head["name"].strip()
        if raw.startswith("{", _after_space(raw, head.end())):
            body = raw[head.end() :]
            return ToolCall(name, _arguments(json_value(body[: body.rfind("}") + 1]), raw))
        found: list[tuple[re.Match[str], str]] = []
        at = _after_space(raw, head.end())
        argument = re.compile(self.opening)
        while opening := argument.match(raw, at):
            end = self._end(raw, opening.end())
            if end is None:
                refuse("an argument has no end", raw)
            found.append((opening, raw[opening.end() : end]))
            at = _after_space(raw, end + len(self.closing))
        if not re.compile(self.tail).match(raw, at):
            refuse("it is incomplete, or has text between its arguments", raw)
        schemas = properties_of(tools, name)
        if self.lines:
            found = [(m, _own_lines(text)) for m, text in found]
        return ToolCall(name, {m["key"]: self._value(m, text, schemas.get(m["key"])) for m, text in found})

    def _end(self, raw: str, at: int) -> int | None:
        """Position of the first closing tag that another argument or the call's end follows, else None."""
        opening, tail = re.compile(self.opening), re.compile(self.tail)
        while (at := raw.find(self.closing, at)) >= 0:
            after = _after_space(raw, at + len(self.closing))
            if opening.match(raw, after) or tail.match(raw, after):
                return at
            at += 1
        return None

    def _value(self, opening: re.Match[str], text: str, schema: Any) -> Any:
        kind = opening.groupdict().get("type")
        if text.startswith("<![CDATA[") and text.endswith("]]>"):
            return text[9:-3]
        if kind is not None:
            return text if kind in ("true", "string") else typed(text, {}, guess=True)
        return typed(text, schema, guess=self.guess)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Braces:
    """Reader for `call:NAME{key:value}`: unquoted keys, strings between two `quote` tags, no escapes."""

    quote: str

    def __call__(self, raw: str, tools: Tools) -> ToolCall:
        """The call. Raises ToolCallError."""
        match = _CALL.match(raw.strip())
        if match is None:
            refuse("it has no name", raw)
        try:
            value, at = self._object(raw.strip(), match.end())
        except (RecursionError, ValueError):
            refuse("it is nested too deeply, or a number is too long", raw)
        if raw.strip()[at:]:
            refuse("text follows it", raw)
        return ToolCall(match["name"], value)

    def _object(self, text: str, at: int) -> tuple[dict[str, Any], int]:
        """Parse an object after its opening brace; returns it and the position after it."""
        values: dict[str, Any] = {}
        at = _after_space(text, at)
        while not text.startswith("}", at):
            if text.startswith(self.quote, at):
                key, at = self._string(text, at)
            else:
                end = text.find(":", at)
                if end < 0:
                    refuse("a key has no value", text[at:] or text)
                key, at = text[at:end].strip().strip('"'), end
            at = _after_space(text, at)
            if not text.startswith(":", at):
                refuse("a key has no value", text[at:] or text)
            values[key], at = self._value(text, at + 1)
            at = self._next(text, at, "}")
        return values, at + 1

    def _value(self, text: str, at: int) -> tuple[Any, int]:
        at = _after_space(text, at)
        if text.startswith(self.quote, at):
            return self._string(text, at)
        if text.startswith("{", at):
            return self._object(text, at + 1)
        if text.startswith("[", at):
            values: list[Any] = []
            at = _after_space(text, at + 1)
            while not text.startswith("]", at):
                value, at = self._value(text, at)
                values.append(value)
                at = self._next(text, at, "]")
            return values, at + 1
        match = _ATOM.match(text, at)
        if match is None:
            refuse("a value is missing", text[at:] or text)
        return _atom(match.group().strip()), match.end()

    def _string(self, text: str, at: int) -> tuple[str, int]:
        start = at + len(self.quote)
        end = text.find(self.quote, start)
        if end < 0:
            refuse("a string has no end", text)
        return text[start:end], end + len(self.quote)

    def _next(self, text: str, at: int, closing: str) -> int:
        """The position after a comma, or of the closing bracket."""
        at = _after_space(text, at)
        if text.startswith(",", at):
            return _after_space(text, at + 1)
        return at if text.startswith(closing, at) else refuse("it is incomplete", text)


_CALL = re.compile(r"call:(?P<name>[^{]+)\{")
_ATOM = re.compile(r"[^,{}\[\]]+")


def _atom(text: str) -> Any:
    """Parse a number, true, false, null, or text without quotes."""
    if text in ("true", "True", "false", "False"):
        return text in ("true", "True")
    if text in ("null", "None", "none"):
        return None
    return json.loads(text) if _NUMBER.fullmatch(text) else text.strip('"')

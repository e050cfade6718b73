"""Arguments in nested elements, `<key>value</key>`, with a marker before each tag (MiniMax M3)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..json_data import list_in, object_in
from .call import ToolCall, Tools
from .readers import refuse
from .typed import properties_of, typed

_ITEM = "item"
_DEPTH = 64  # of elements within elements


@dataclass(frozen=True)
class Nested:
    """Reader of nested elements; those named "item" form a list. `marker` precedes each tag.

    A nested value without a schema is parsed as JSON if possible.
    """

    marker: str

    def __call__(self, raw: str, tools: Tools) -> ToolCall:
        """Parse `raw`. Raises ToolCallError."""
        pieces = [piece for piece in raw.strip().split(self.marker) if piece]
        head = _HEAD.fullmatch(pieces[0].strip()) if pieces else None
        if head is None:
            refuse("it has no name", raw)
        schema = {"properties": properties_of(tools, head["name"])}
        arguments, at = self._value(pieces, 0, "invoke", schema, 0)
        if at != len(pieces):
            refuse("text follows it", raw)
        return ToolCall(head["name"], object_in(arguments))

    def _value(self, pieces: list[str], at: int, name: str, schema: Any, depth: int) -> tuple[Any, int]:
        """The value of the element with its opening tag in piece `at`, and the index after its closing tag."""
        text = pieces[at].partition(">")[2]
        values: list[tuple[str, Any]] = []
        at += 1
        while at < len(pieces) and (tag := _OPENING.match(pieces[at])):
            inner = _schema_of(schema, tag[1])
            value, at = self._value(pieces, at, tag[1], inner, depth + 1) if depth < _DEPTH else (None, len(pieces))
            values.append((tag[1], value))
        if at >= len(pieces) or not pieces[at].startswith(f"</{name}>"):
            refuse(f"{name} has no end", self.marker.join(pieces))
        at += 1
        if not values:
            return typed(text, schema, guess=depth > 1), at
        if all(key == _ITEM for key, _ in values):
            return [value for _, value in values], at
        return dict(values), at


_HEAD = re.compile(r'<invoke name="(?P<name>[^"]+)">\s*')
_OPENING = re.compile(r"<([^/<>][^<>]*)>")


def _schema_of(schema: Any, name: str) -> Any:
    """The schema of a child element `name` of a value with `schema`."""
    if name == _ITEM and "items" in object_in(schema):
        return object_in(schema)["items"]
    options = [schema, *(each for key in ("anyOf", "oneOf") for each in list_in(object_in(schema).get(key)))]
    properties = [object_in(object_in(each).get("properties")) for each in options]
    return next((each[name] for each in properties if name in each), None)

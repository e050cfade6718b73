"""Conversion of an argument's raw text to the type in the tool's JSON schema."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from ..json_data import is_list, is_object, list_in, object_in
from .call import Tools

MISSING = object()
_NESTING = 8  # schemas that refer to schemas


def properties_of(tools: Tools, name: str) -> dict[str, Any]:
    """The schemas of a tool's arguments, references resolved one step; empty for an unknown tool."""
    for tool in tools or ():
        function = object_in(tool.get("function")) or dict(tool)
        if function.get("name") == name:
            schema = object_in(function.get("parameters")) or object_in(function.get("input_schema"))
            properties = object_in(schema.get("properties"))
            return {key: _resolved(value, schema) for key, value in properties.items()}
    return {}


def names_of(tools: Tools) -> frozenset[str]:
    """The names of the tools of a request."""
    functions = [object_in(tool.get("function")) or dict(tool) for tool in tools or ()]
    return frozenset(name for each in functions if isinstance(name := each.get("name"), str))


def typed(text: str, schema: Any, *, guess: bool = False) -> Any:
    """Convert `text` to a type that the schema allows; unconvertible text stays text.

    Without types in the schema, `guess` parses JSON if possible.
    """
    types = set(_types(schema))
    choices = list_in(object_in(schema).get("enum")) or [
        each for name, each in object_in(schema).items() if name == "const"
    ]
    if not types and choices:
        return next((choice for choice in choices if text in (str(choice), json.dumps(choice))), text)
    if not types:
        return literal(text) if guess and literal(text) is not MISSING else text
    if types <= {"string"}:
        return text
    value = literal(text.strip())
    if value is not MISSING and _is_any_of(value, types):
        return int(value) if isinstance(value, float) and _only_whole(types) else value
    # null for a type that is neither nullable nor a string is closer to the model's intent than the text
    return value if value is None and "string" not in types else text


def _types(schema: Any, depth: int = 0) -> Iterator[str]:
    """The names of all types that a schema allows."""
    if not is_object(schema) or depth > _NESTING:
        return
    named = schema.get("type")
    for each in [named] if isinstance(named, str) else list_in(named):
        if isinstance(each, str):
            yield _NAMES.get(each.lower(), each.lower())
    if schema.get("nullable") is True:
        yield "null"
    if named is None and "properties" in schema:
        yield "object"
    if named is None and "items" in schema:
        yield "array"
    for key in ("anyOf", "oneOf", "allOf"):
        for each in list_in(schema.get(key)):
            yield from _types(each, depth + 1)


def _resolved(schema: Any, root: Mapping[str, Any], depth: int = 0) -> Any:
    """The schema with its references into `root` resolved."""
    if not is_object(schema) or depth > _NESTING:
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: Any = root
        for step in reference[2:].split("/"):
            target = object_in(target).get(step)
        return _resolved(target, root, depth + 1)
    return {
        key: [_resolved(each, root, depth + 1) for each in value]
        if key in ("anyOf", "oneOf", "allOf") and is_list(value)
        else value
        for key, value in schema.items()
    }


def literal(text: str) -> Any:
    """Parse JSON or a Python literal; MISSING for other text.

    Templates without a JSON filter write Python literals.
    """
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        pass
    if text[:1] not in ("{", "[", "T", "F", "N"):
        return MISSING
    try:
        value: Any = ast.literal_eval(text)
        json.dumps(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return _lower(text)
    return value


def _refuse(constant: str) -> NoReturn:
    """Raise ValueError for NaN and Infinity, which JSON does not have."""
    raise ValueError(constant)


def _lower(text: str) -> Any:
    return {"TRUE": True, "FALSE": False, "NULL": None}.get(text, MISSING)


# type names of Python and other languages in hand-written schemas
_NAMES = {
    "str": "string",
    "text": "string",
    "int": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "dict": "object",
    "list": "array",
    "tuple": "array",
    "none": "null",
}
_KINDS: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "array": (list,),
}


def _is_any_of(value: Any, types: set[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return True
    return any(isinstance(value, _KINDS.get(name, ())) for name in types)


def _only_whole(types: set[str]) -> bool:
    return "integer" in types and "number" not in types

"""Reader for Python calls, `name(key="value", n=2)`: literals only, nothing is executed."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

from .call import ToolCall, Tools
from .readers import refuse
from .typed import properties_of

_HEAD = re.compile(r"\s*(?P<name>[^\s(){}\[\]\"',=]+)\s*\(")
_KEY = re.compile(r"\s*(?P<key>[^\s(){}\[\]\"',=]+)\s*=(?!=)")
# A quote ends a string only before a character that may follow a value: templates do not escape quotes in strings.
_STRING = re.compile(
    "|".join(
        (
            *(rf"{q}(?:\\.|(?!{q})[^\\])*{q}" for q in ("'''", '"""')),
            *(rf"{q}(?:\\.|[^{q}\\]|{q}(?!\s*(?:[,)\]}}:]|\Z)))*{q}" for q in ("'", '"')),
        )
    ),
    re.DOTALL,
)
_MARK = re.compile(r"['\"()\[\]{},]")
_UNSAFE = re.compile(r"\\.|['\"\r\n]", re.DOTALL)
_WORDS = {"true": True, "false": False, "null": None}


def read_python(raw: str, tools: Tools) -> ToolCall:
    """Parse a call; positional arguments get the schema's names, in order. Raises ToolCallError."""
    head = _HEAD.match(raw)
    if head is None:
        refuse("it has no name", raw)
    pieces, end = _split(raw, head.end())
    if end is None or raw[end:].strip():
        refuse("it is incomplete, or text follows it", raw)
    name = head["name"].removesuffix(".call")
    order = list(properties_of(tools, name))
    arguments: dict[str, Any] = {}
    for index, piece in enumerate(pieces):
        key = _KEY.match(piece)
        if key is None and index >= len(order):
            refuse(f"argument {index + 1} has no name", raw)
        arguments[key["key"] if key else order[index]] = _value(piece[key.end() :] if key else piece, raw)
    return ToolCall(name, arguments)


def _split(raw: str, at: int) -> tuple[list[str], int | None]:
    """The arguments after an opening parenthesis, and the position after the closing one or None."""
    pieces: list[str] = []
    depth, start = 0, at
    while token := _MARK.search(raw, at):
        text, at = token.group(), token.end()
        if text in ("'", '"'):
            string = _STRING.match(raw, token.start())
            if string is None:
                break
            at = string.end()
        elif text in "([{":
            depth += 1
        elif text in ")]}":
            depth -= 1
        if depth < 0 or (text == "," and depth == 0):
            if raw[start : token.start()].strip():
                pieces.append(raw[start : token.start()])
            start = at
        if depth < 0:
            return pieces, at
    return pieces, None


def _value(text: str, raw: str) -> Any:
    """Parse a Python or JSON literal; its strings may contain line breaks."""
    text = _STRING.sub(lambda match: _escaped(match.group()), text).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown escapes
            return _literal(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        refuse("an argument is not a literal", raw)


def _escaped(string: str) -> str:
    """The string literal with its inner quotes and line breaks escaped."""
    width = 3 if string[:3] in _LONG and len(string) >= 6 else 1
    inner = _UNSAFE.sub(lambda match: _ESCAPES.get(match.group(), match.group()), string[width:-width])
    return string[0] + inner + string[0]


_LONG = ("'''", '"""')
_ESCAPES = {"'": "\\'", '"': '\\"', "\n": "\\n", "\r": "\\r"}


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() as text):
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case ast.Constant(value=bool() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in _WORDS:
            return _WORDS[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _literal(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.UnaryOp(op=ast.UAdd(), operand=ast.Constant(value=int() | float() as value)):
            return value
        case _:
            raise ValueError(ast.dump(node))


def _key(node: ast.expr | None) -> str:
    if node is None:
        raise ValueError("** is not a literal")
    value = _literal(node)
    return value if isinstance(value, str) else str(value)

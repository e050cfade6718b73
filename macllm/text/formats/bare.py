"""Tool calls without tags: detection in the first characters of an answer."""

from __future__ import annotations

import json
import re
from enum import Enum, auto

from ..json_data import is_object
from .shape import NAME, SPACE, Shape

_ARGUMENTS = ("parameters", "arguments")
_NAMES = ("name", "function")
_KEYS = ("type", "id", *_NAMES, *_ARGUMENTS)
_STRING = re.compile(r'"((?:[^"\\]|\\.){0,128})(")?')
_WHOLE_STRING = re.compile(r'"((?:[^"\\]|\\.){0,128})"')
_IDENTITY = re.compile(r'"(?:[^"\\]|\\.){0,128}"|\d{1,32}(?=\D)|null')
_SPACE = re.compile(r"\s*")


class Verdict(Enum):
    """Result of detection: a call, text, undecided (MORE), or undecided until the object's end (WHOLE)."""

    CALL = auto()
    TEXT = auto()
    MORE = auto()
    WHOLE = auto()


def judge_json(text: str, at: int, names: frozenset[str]) -> Verdict:
    """The verdict on the JSON object that begins at `at`, from its keys and its tool name."""
    named = False
    at = _skip(text, at + 1)
    while True:
        key, at = _key(text, at)
        if isinstance(key, Verdict):
            return key
        if key in _ARGUMENTS:
            if text[at] != "{":
                return Verdict.TEXT
            return Verdict.CALL if named else Verdict.WHOLE
        if key == "function" and text[at] == "{":
            return Verdict.WHOLE
        value = (_IDENTITY if key == "id" else _WHOLE_STRING).match(text, at)
        if value is None:
            return _unfinished(text, at, key, names)
        if key in _NAMES and value[1] not in names:
            return Verdict.TEXT
        named = named or key in _NAMES
        at = _skip(text, value.end())
        if at < len(text) and text[at] != ",":
            return Verdict.TEXT
        at = _skip(text, at + 1)
        if at >= len(text):
            return Verdict.MORE


def _key(text: str, at: int) -> tuple[str | Verdict, int]:
    """The key at `at` and the position of its value, or a verdict if the key is missing or incomplete."""
    key = _STRING.match(text, at)
    if key is None or key[2] is None:
        begun, unfinished = (key[1], key.end() == len(text)) if key else ("", at == len(text))
        possible = unfinished and any(each.startswith(begun) for each in _KEYS)
        return (Verdict.MORE if possible else Verdict.TEXT), at
    if key[1] not in _KEYS:
        return Verdict.TEXT, at
    at = _skip(text, key.end())
    if at < len(text) and text[at] != ":":
        return Verdict.TEXT, at
    at = _skip(text, at + 1)
    return (key[1] if at < len(text) else Verdict.MORE), at


def _unfinished(text: str, at: int, key: str, names: frozenset[str]) -> Verdict:
    """The verdict on a value that is incomplete or of the wrong type for its key."""
    begun = text[at + 1 :]
    if len(begun) > 128 or not (text[at] == '"' or (key == "id" and text[at] in "0123456789n")):
        return Verdict.TEXT
    if key in _NAMES and not any(name.startswith(begun) for name in names):
        return Verdict.TEXT
    return Verdict.MORE


def is_call(text: str, names: frozenset[str]) -> bool:
    """True for a complete JSON object that is a call of one of the tools `names`."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    if is_object(value) and is_object(value.get("function")):
        value = value["function"]
    if not is_object(value) or not set(value) <= set(_KEYS):
        return False
    name = value.get("name", value.get("function"))
    return isinstance(name, str) and name in names and any(is_object(value.get(key)) for key in _ARGUMENTS)


def judge_python(text: str, at: int, names: frozenset[str]) -> Verdict:
    """The verdict on the Python call that begins at `at`, from its name."""
    end = _PYTHON.end(text, at)
    if end is not None:
        return Verdict.CALL if text[at : end - 1].strip() in names else Verdict.TEXT
    return Verdict.MORE if _PYTHON.may_begin(text, at) else Verdict.TEXT


_PYTHON = Shape(NAME, SPACE, "(")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at

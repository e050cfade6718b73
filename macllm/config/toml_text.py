"""The text of a TOML file: the line of each key, and edits that leave the rest of the text alone."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from macllm.errors import UsageError

Path = tuple[str, ...]
_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Statement:
    """A table's header or a key with its value, in the lines `first` to `last` (from 0)."""

    first: int
    last: int
    table: Path
    paths: tuple[Path, ...]  # of the values; none in a header


def statements(text: str) -> Iterator[Statement]:
    """The statements of a valid TOML text.

    A statement is the shortest run of lines that is TOML on its own: within a string or an array of several lines,
    none is.
    """
    lines = text.split("\n")
    table: Path = ()
    first = 0
    while first < len(lines):
        last = first
        while (found := _parsed("\n".join(lines[first : last + 1]))) is None:
            last += 1
        if lines[first].lstrip().startswith("["):
            table = _deepest(found)
            yield Statement(first, last, table, ())
        elif found:
            yield Statement(first, last, table, tuple(table + path for path in _leaves(found)))
        first = last + 1


def line_numbers(text: str) -> dict[Path, int]:
    """The line, from 1, of each table's header and of each value."""
    lines: dict[Path, int] = {}
    for each in statements(text):
        for path in each.paths or (each.table,):
            for length in range(1, len(path) + 1):
                lines.setdefault(path[:length], each.first + 1)
            lines[path] = each.first + 1
    return lines


def with_value(text: str, path: Path, value: Any) -> str:
    """The text with one value set; comments, order and all other lines stay.

    Raises: UsageError where the text is written in a way that this cannot edit.
    """
    expected = tomllib.loads(text)
    _child(expected, path[:-1])[path[-1]] = list(value) if isinstance(value, tuple) else value
    lines = text.split("\n")
    found = list(statements(text))
    end = "\r" if "\r\n" in text else ""
    new = f"{key_text(path[-1])} = {_literal(value)}"
    if (old := next((each for each in found if path in each.paths), None)) is not None:
        left = lines[old.first].partition("=")[0].rstrip()
        lines[old.first : old.last + 1] = [f"{left} = {_literal(value)}{_remark(lines, old)}{end}"]
    elif same := [each for each in found if each.table == path[:-1]]:
        lines.insert(same[-1].last + 1, new + end)
        if same[-1].last + 1 == len(lines) - 1:
            lines.append("")
    else:
        while lines and not lines[-1].strip():
            lines.pop()
        header = f"[{'.'.join(map(key_text, path[:-1]))}]"
        lines += [*([end] if lines else []), header + end, new + end, ""]
    return _verified("\n".join(lines), expected, path)


def without_value(text: str, path: Path) -> str:
    """The text without one value; the header of its table stays. Raises: UsageError if it is not there."""
    expected = tomllib.loads(text)
    old = next((each for each in statements(text) if path in each.paths), None)
    if old is None:
        raise UsageError(f"{'.'.join(path)} is not set", remedy="macllm config show")
    _child(expected, path[:-1]).pop(path[-1])
    lines = text.split("\n")
    del lines[old.first : old.last + 1]
    return _verified("\n".join(lines), expected, path)


def _remark(lines: list[str], statement: Statement) -> str:
    """The comment at the end of a statement, with the spaces before it."""
    before, last = lines[statement.first : statement.last], lines[statement.last].rstrip("\r")
    value = _parsed("\n".join([*before, last]))
    for found in re.finditer(r"\s*#", last):
        if _parsed("\n".join([*before, last[: found.start()]])) == value:
            return last[found.start() :]
    return ""


def _verified(text: str, expected: dict[str, Any], path: Path) -> str:
    found = _parsed(text)
    if found is None or _filled(found) != _filled(expected):
        raise UsageError(f"cannot edit {'.'.join(path)} in this file", remedy="edit it by hand")
    return text


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text.removesuffix("\r"))  # without the \n after it
    except tomllib.TOMLDecodeError:
        return None


def _filled(table: dict[str, Any]) -> dict[str, Any]:
    """The table without its empty tables, which say nothing."""
    inner = {name: _filled(value) if isinstance(value, dict) else value for name, value in table.items()}
    return {name: value for name, value in inner.items() if value != {}}


def _deepest(table: Any) -> Path:
    while isinstance(table, list):  # [[array of tables]]
        table = table[0]
    return next(((name, *_deepest(inner)) for name, inner in table.items()), ())


def _leaves(table: dict[str, Any]) -> Iterator[Path]:
    for name, inner in table.items():
        if isinstance(inner, dict) and inner:
            yield from ((name, *path) for path in _leaves(inner))
        else:
            yield (name,)


def _child(table: dict[str, Any], path: Path) -> dict[str, Any]:
    for name in path:
        table = table.setdefault(name, {})
    return table


def key_text(name: str) -> str:
    """A name as TOML writes it in a key: quoted, unless it is bare."""
    return name if _BARE.fullmatch(name) else _literal(name)


def _literal(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for the delete character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else str(value)

"""Values of settings: read from TOML, checked by name, converted to a field's type."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin

from macllm.errors import UsageError
from macllm.generation.sampling.ranges import shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def read_toml(path: Path) -> dict[str, Any]:
    """The keys and values of a file. Raises UsageError if it is unreadable or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the config {path}", cause=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML", cause=str(error)) from error


def check_names(cls: type[DataclassInstance], values: dict[str, Any], where: str) -> None:
    """Raise UsageError for a name that is no field of `cls`."""
    names = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name.replace("-", "_"), names, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]}?" if near else f"one of {', '.join(names)}"
            raise UsageError(f"unknown setting {name!r} {where}", remedy=remedy)


def convert(name: str, value: Any, kind: Any) -> Any:
    """Convert `value` to the field's type; only strings from the command line are parsed."""
    wrong = UsageError(f"{name} cannot be {shown(value)}", cause=f"it must be {_describe(kind)}")
    if get_origin(kind) is tuple:
        given: Any = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        if not isinstance(given, list | tuple):
            raise wrong
        items = cast("list[Any]", given)
        if not all(isinstance(item, str) for item in items):
            raise wrong
        return tuple(items)
    if get_origin(kind) is Literal or kind is str:
        if not isinstance(value, str | Path):
            raise wrong
        return str(value)
    if kind is bool:
        named = {"true": True, "false": False, True: True, False: False}
        key: Any = value.lower() if isinstance(value, str) else value
        if key not in named:
            raise wrong
        return named[key]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | str)
        or (kind is int and isinstance(value, float))
    ):
        raise wrong
    try:
        return kind(value)
    except (ValueError, OverflowError) as error:
        raise wrong from error


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return names.get(kind, "a list of strings")

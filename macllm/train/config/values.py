"""Values of settings: read from TOML, checked by name, converted to a field's type."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import tomllib
from collections.abc import Collection, Container, Generator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin

from macllm.errors import UsageError
from macllm.generation.sampling.ranges import shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Names of settings in peft and TRL that are spelled too differently.
_ELSEWHERE = {"lr": "learning_rate", "r": "rank", "max_steps": "iters", "max_length": "max_seq_length"}


def read_toml(path: Path) -> dict[str, Any]:
    """The keys and values of a file. Raises UsageError if it is unreadable or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read the config {path}", cause=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML", cause=str(error)) from error


def check_names(cls: type[DataclassInstance], values: dict[str, Any], where: str) -> None:
    """Raise UsageError for a name that is no field of `cls`."""
    names = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            if isinstance(values[name], dict):
                remedy = f"its settings before the first [section], without {name}"
                raise UsageError(f"unknown section {name!r} {where}", cause="settings have none", remedy=remedy)
            near = nearest(name, names)
            remedy = f"did you mean {near}?" if near else f"one of {', '.join(names)}"
            raise UsageError(f"unknown setting {name!r} {where}", remedy=remedy)


def nearest(name: str, names: list[str]) -> str | None:
    """The name that `name` is a misspelling of or another tool's word for, if any."""
    plain = name.replace("-", "_").lower()
    if _ELSEWHERE.get(plain) in names:
        return _ELSEWHERE[plain]
    near = difflib.get_close_matches(plain, names, n=1, cutoff=0.5)
    return near[0] if near else None


@contextmanager
def naming(path: Path | str | None, names: Container[str]) -> Generator[None]:
    """Put the file into errors about one of the settings that it has."""
    try:
        yield
    except UsageError as error:
        if path is None or error.message.partition(" ")[0] not in names:
            raise
        raise UsageError(f"{path}: {error.message}", cause=error.cause, remedy=error.remedy) from error


def refuse_set(config: DataclassInstance, names: Collection[str], cause: str) -> None:
    """Raise UsageError for a setting among `names` that has no effect and is not at its default."""
    for field in dataclasses.fields(config):
        value: Any = getattr(config, field.name)
        value = tuple(cast("list[Any]", value)) if isinstance(value, list) else value  # of JSON
        if field.name in names and value != field.default:
            raise UsageError(f"{field.name} has no effect", cause=cause, remedy=f"leave {field.name} out")


def settable(kind: Any) -> Any:
    """The type of a field without the None of an unset one."""
    return next(each for each in get_args(kind) if each is not NoneType) if get_origin(kind) is UnionType else kind


def convert(name: str, value: Any, kind: Any, *, parses: bool = True) -> Any:
    """Convert `value` to the field's type.

    Strings are parsed as on a command line, unless `parses` is False. Raises: UsageError for a value of another type.
    """
    if get_origin(kind) is tuple:
        converted = _strings(value)
    elif get_origin(kind) is Literal or kind is str:
        converted = str(value) if isinstance(value, str | Path) else None
    elif isinstance(value, str) and not parses:
        converted = None
    elif kind is bool:
        converted = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
        converted = converted if isinstance(converted, bool) else None
    else:
        converted = _number(value, kind)
    if converted is None:
        remedy = "quotes around it" if kind is str and not isinstance(value, list | dict) else None
        raise UsageError(f"{name} cannot be {_quoted(value)}", cause=f"it must be {_describe(kind)}", remedy=remedy)
    return converted


def _strings(value: Any) -> tuple[str, ...] | None:
    given: Any = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        return None
    items = cast("list[Any]", given)
    return tuple(items) if all(isinstance(item, str) for item in items) else None


def _number(value: Any, kind: Any) -> int | float | None:
    is_whole = kind is int and isinstance(value, float)
    if isinstance(value, bool) or not isinstance(value, int | float | str) or is_whole:
        return None
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return None


def _quoted(value: Any) -> str:
    is_time = isinstance(value, datetime.date | datetime.time)
    return str(value) if is_time else str(value).lower() if isinstance(value, bool) else shown(value)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return names.get(kind, "a list of strings")

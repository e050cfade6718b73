"""Turns, and the dataclasses in them, as JSON values, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from macllm.errors import DataError

T = TypeVar("T")
_Reader = Callable[[Any, str], Any]


def to_json(value: Any) -> Any:
    """A dataclass as an object without the fields that have their defaults; tuples as arrays."""
    if is_dataclass(value):
        return {
            name: to_json(given)
            for name, default in _defaults(type(value))
            if (given := getattr(value, name)) != default
        }
    if isinstance(value, tuple):
        return [to_json(each) for each in value]
    return value


def from_json(kind: type[T], value: Any, where: str = "turn") -> T:
    """The `kind` that `to_json` made `value` of. Unknown fields, as of a newer version, are ignored.

    `where` names the value in errors. Raises: DataError for a missing field and for a value of a wrong type.
    """
    return _reader(kind)(value, where)


@cache
def _defaults(kind: type) -> tuple[tuple[str, Any], ...]:
    return tuple((each.name, _default(each)) for each in fields(kind))


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


@cache
def _reader(kind: Any) -> _Reader:
    if is_dataclass(kind):
        return _object_reader(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return _tuple_reader(arguments)
    if origin in (Union, UnionType):
        return _union_reader(arguments)
    if origin is Literal:
        return _checked(lambda value: isinstance(value, str) and value in arguments, f"one of {', '.join(arguments)}")
    return _CHECKS[kind]


def _object_reader(kind: Any) -> _Reader:
    hints = get_type_hints(kind)
    readers = {each.name: _reader(hints[each.name]) for each in fields(kind)}
    required = [name for name, default in _defaults(kind) if default is MISSING]

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong(where, "an object")
        for name in required:
            if name not in value:
                raise DataError(f"{where} has no {name}")
        return kind(
            **{name: readers[name](given, f"{where}.{name}") for name, given in value.items() if name in readers}
        )

    return read


def _tuple_reader(arguments: tuple[Any, ...]) -> _Reader:
    any_length = arguments[1:] == (...,)
    readers = [_reader(each) for each in arguments if each is not ...]

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, list) or not (any_length or len(value) == len(readers)):
            raise _wrong(where, "a list" if any_length else f"a list of {len(readers)}")
        if any_length:
            return tuple(readers[0](each, where) for each in value)
        return tuple(reader(each, where) for reader, each in zip(readers, value, strict=True))

    return read


def _union_reader(kinds: tuple[Any, ...]) -> _Reader:
    literals = tuple(value for each in kinds if get_origin(each) is Literal for value in get_args(each))
    others = [each for each in kinds if get_origin(each) is not Literal and each is not type(None)]
    readers = [_reader(each) for each in others] + ([_reader(Literal[literals])] if literals else [])
    optional = type(None) in kinds

    def read(value: Any, where: str) -> Any:
        if value is None and optional:
            return None
        for reader in readers[:-1]:
            try:
                return reader(value, where)
            except DataError:
                continue
        return readers[-1](value, where)

    return read


def _checked(is_right: Callable[[Any], bool], expected: str) -> _Reader:
    def read(value: Any, where: str) -> Any:
        if not is_right(value):
            raise _wrong(where, expected)
        return value

    return read


_CHECKS: dict[Any, _Reader] = {
    str: _checked(lambda value: isinstance(value, str), "text"),
    int: _checked(lambda value: type(value) is int, "a whole number"),
    float: _checked(lambda value: type(value) in (int, float), "a number"),
    bool: _checked(lambda value: type(value) is bool, "true or false"),
}


def _wrong(where: str, expected: str) -> DataError:
    return DataError(f"{where} must be {expected}")

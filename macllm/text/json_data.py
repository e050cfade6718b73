"""Checked access to untrusted JSON from files and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

from macllm import files
from macllm.errors import CheckpointError

REDOWNLOAD = "download the model again: macllm models get NAME"
_MAX_BYTES = 512 << 20


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Narrow a JSON value to an object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Narrow a JSON value to a list."""
    return isinstance(value, list)


def object_in(value: object) -> dict[str, Any]:
    """`value` if it is an object, else an empty one."""
    return value if is_object(value) else {}


def list_in(value: object) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    return value if is_list(value) else []


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if the file is missing. Raises `CheckpointError` for other content."""
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path} is too large for a tokenizer file.", remedy=REDOWNLOAD)
    try:
        value = files.read_json(path)
    except ValueError as error:
        cause, remedy = files.wrong_content(path) or (str(error), REDOWNLOAD)
        raise CheckpointError(f"{path} is not valid JSON.", cause=cause, remedy=remedy) from error
    if not is_object(value):
        raise CheckpointError(f"{path} is not a JSON object.", remedy=REDOWNLOAD)
    return value

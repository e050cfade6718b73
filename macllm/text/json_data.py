"""JSON as it comes from files and models: of any shape, so asked before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

from macllm import files
from macllm.errors import CheckpointError

REDOWNLOAD = "download the model again: macllm models get NAME"
_MAX_BYTES = 512 << 20


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is an object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether a JSON value is a list."""
    return isinstance(value, list)


def object_in(value: object) -> dict[str, Any]:
    """The object that a JSON value is, empty for anything else."""
    return value if is_object(value) else {}


def list_in(value: object) -> list[Any]:
    """The list that a JSON value is, empty for anything else."""
    return value if is_list(value) else []


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no such file.

    Raises `CheckpointError` for anything else than a JSON object.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path} is too large for a tokenizer file.", remedy=REDOWNLOAD)
    try:
        value = files.read_json(path)
    except ValueError as error:
        cause, remedy = files.stand_in(path) or (str(error), REDOWNLOAD)
        raise CheckpointError(f"{path} is not valid JSON.", cause=cause, remedy=remedy) from error
    if not is_object(value):
        raise CheckpointError(f"{path} holds no JSON object.", remedy=REDOWNLOAD)
    return value

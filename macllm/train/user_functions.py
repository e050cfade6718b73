"""Functions in a Python file of the user's, named `file.py:function`.

The file is the user's own code and is run as such, with all rights of the user.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from macllm.errors import UsageError


def load(name: str, use: str) -> Callable[..., Any]:
    """Run the file, and return the function. `use` says in errors what it is for.

    Raises UsageError for a missing file or function, and for a file that fails.
    """
    text, _, function = name.rpartition(":")
    path, remedy = Path(text), f"{use} file.py:function"
    if not text or not function:
        raise UsageError(f"{name} names no function", cause=f"{use} takes a file and a function in it", remedy=remedy)
    if not path.is_file():
        raise UsageError(f"there is no file {path}", cause=f"{use} is {name}", remedy=remedy)
    spec = importlib.util.spec_from_file_location(f"macllm_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file", remedy=remedy)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path} cannot be run", cause=cause(error, name), remedy=f"python {path}") from error
    found = getattr(module, function, None)
    if not callable(found):
        near = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise UsageError(f"{path} has no function {function!r}", remedy=f"one of {', '.join(near)}" if near else None)
    return found


def cause(error: BaseException, name: str) -> str:
    """The error of the user's code in one line, with the last line of the file that led to it."""
    path = Path(name.rpartition(":")[0]).absolute()
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    return f"{type(error).__name__}: {error}" + (f" ({path.name}:{lines[-1]})" if lines else "")


def identity(name: str) -> str:
    """The name with the hash of the file in place of its path."""
    path, _, function = name.rpartition(":")
    return f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()}:{function}"

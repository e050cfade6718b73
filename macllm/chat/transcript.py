"""A conversation as Markdown, written so that nothing is lost."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from macllm.errors import MacllmError, UsageError

from .session import Turn

_ENDINGS = {"cancelled": "stopped", "failed": "cut short by an error", "length": "cut at the token limit"}


def as_markdown(turns: Sequence[Turn], *, model_name: str, system: str | None = None) -> str:
    """The conversation as one Markdown document that ends with a newline."""
    parts = [f"# Chat with {model_name}"]
    if system:
        parts += ["## System", system.strip()]
    for turn in turns:
        parts.append("## You" if turn.role == "user" else f"## {model_name}")
        if turn.reasoning:
            parts += ["<details><summary>Reasoning</summary>", turn.reasoning.strip(), "</details>"]
        if turn.content.strip():
            parts.append(turn.content.strip("\n"))
        if turn.finish in _ENDINGS:
            parts.append(f"*({_ENDINGS[turn.finish]})*")
    return "\n\n".join(parts) + "\n"


def write(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write `text` to `path` in one step: the whole file or nothing.

    Raises: UsageError when the file exists and `overwrite` is false; MacllmError when it cannot be written.
    """
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder.", cause="the conversation becomes one file", remedy=f"/save {path / 'chat.md'}"
        )
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise _unwritable(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        if overwrite:
            temporary.replace(path)
        else:
            _publish_new(temporary, path)
    except FileExistsError as error:
        raise UsageError(
            f"{path} exists.", cause="nothing is overwritten unasked", remedy=f"/save --force {path}"
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _publish_new(temporary: Path, path: Path) -> None:
    """Give the file its name unless the name is taken. Raises: FileExistsError."""
    try:
        os.link(temporary, path)  # unlike a rename, a link never replaces
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)


def _unwritable(path: Path, error: OSError) -> MacllmError:
    return MacllmError(
        f"{path} could not be written.", cause=error.strerror or str(error), remedy="/save to another folder"
    )

"""A conversation as a Markdown file, written atomically."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from macllm.errors import MacllmError, UsageError
from macllm.files import write_text

from .conversation import Turn

ENDINGS = {"cancelled": "stopped", "failed": "cut short by an error", "length": "cut at the token limit"}


def as_markdown(turns: Sequence[Turn], *, model_name: str, system: str | None = None) -> str:
    """The conversation as one Markdown document that ends with a newline."""
    parts = [f"# Chat with {model_name}"]
    if system:
        parts += ["## System", system.strip()]
    for turn in turns:
        if turn.role == "cut":
            parts.append("\n".join(f"> {line}".rstrip() for line in cut_text(turn).split("\n")))
            continue
        parts.append("## You" if turn.role == "user" else f"## {model_name}")
        if turn.reasoning:
            parts += ["<details><summary>Reasoning</summary>", turn.reasoning.strip(), "</details>"]
        if turn.content.strip():
            parts.append(_with_closed_code(turn.content.strip("\n")))
        for each in turn.attachments:
            fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", each.text))])
            closing = "" if each.text.endswith("\n") else "\n"
            parts += [f"**{each.name}**", f"{fence}\n{each.text}{closing}{fence}"]
        if turn.finish in ENDINGS:
            parts.append(f"*({ENDINGS[turn.finish]})*")
    return "\n\n".join(parts) + "\n"


def _with_closed_code(text: str) -> str:
    """The text with the end of a code block that it leaves open, and that would take in what follows."""
    opened = ""
    for mark, rest in re.findall(r"^ {0,3}(`{3,}|~{3,})(.*)$", text, re.MULTILINE):
        if not opened:
            opened = mark if mark[0] == "~" or "`" not in rest else ""
        elif mark.startswith(opened) and not rest.strip():
            opened = ""
    return f"{text}\n{opened}" if opened else text


def cut_text(turn: Turn) -> str:
    """The mark of a cut as text: a sentence, and the summary that the model reads, if any."""
    sentence = "The model no longer reads the messages above."
    return f"{sentence} Summary:\n{turn.content}" if turn.content else sentence


def write(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write `text` to `path` atomically.

    Raises: UsageError if the file exists and `overwrite` is false; MacllmError if it cannot be written.
    """
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder.", cause="a conversation is saved as a file", remedy=f"/export {path / 'chat.md'}"
        )
    try:
        write_text(path, text, overwrite=overwrite)
    except FileExistsError as error:
        raise UsageError(
            f"{path} exists.", cause="files are not overwritten without --force", remedy=f"/export --force {path}"
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> MacllmError:
    return MacllmError(
        f"{path} could not be written.", cause=error.strerror or str(error), remedy="/export to another folder"
    )

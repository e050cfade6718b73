"""Piped input as a message."""

from __future__ import annotations

import sys

from macllm.errors import UsageError


def message(prompt: str | None, attachment: str) -> str:
    """The text to send: the prompt, then the piped text between tags that do not occur in it.

    Raises: UsageError if both are empty.
    """
    prompt = (prompt or "").strip()
    if not attachment.strip():
        if not prompt:
            raise UsageError("The message is empty.", cause="no prompt and no input", remedy='macllm chat "Hello"')
        return prompt
    if not prompt:
        return attachment.strip("\n")
    tag, number = "stdin", 1
    while f"</{tag}>" in attachment:
        number += 1
        tag = f"stdin-{number}"
    closing = "" if attachment.endswith("\n") else "\n"
    return f"{prompt}\n\n<{tag}>\n{attachment}{closing}</{tag}>"


def piped_text() -> str:
    """All of stdin as text; empty if it is closed or a terminal.

    Raises: UsageError if it is not UTF-8.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            "The input is not UTF-8.", cause=f"invalid at byte {error.start}", remedy="convert it, as with iconv"
        ) from error
    except OSError as error:
        raise UsageError(
            "The input cannot be read.", cause=error.strerror, remedy="a file, as with < notes.txt"
        ) from error

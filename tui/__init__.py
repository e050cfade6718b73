"""The terminal interface. Importing this package loads no Textual and no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macllm.chat.options import ChatOptions


def run_chat(options: ChatOptions) -> int:
    """Chat as `options` say and return the exit code: the full screen on a terminal, lines of text elsewhere.

    Raises: MacllmError of what kept a chat without a screen from being made.
    """
    from .front import run_chat as run

    return run(options)

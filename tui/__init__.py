"""The terminal interface. Importing this package loads no Textual and no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macllm.chat.options import ChatOptions


def run_chat(options: ChatOptions) -> int:
    """Run a chat and return its exit code: full screen on a terminal, lines of text elsewhere.

    Raises: MacllmError if a chat without the full screen fails.
    """
    from .front import run_chat as run

    return run(options)

"""The terminal interface. Importing this package loads no Textual and no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macllm.chat.options import ChatOptions

    from .front import Opener


def run_chat(options: ChatOptions, opener: Opener | None = None) -> int:
    """Run a chat and return its exit code: full screen on a terminal, lines of text elsewhere.

    `opener` opens a session with the options, by default `macllm.chat.options.open_session`.

    Raises: MacllmError if a chat without the full screen fails.
    """
    from .front import run_chat as run

    return run(options, opener) if opener else run(options)

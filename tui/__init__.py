"""The terminal interface. Importing this package loads no Textual and no model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macllm.chat.options import ChatOptions

    from .front import Opener

# Textual draws in frames. A typed key waits for the next one: at most 8 ms, instead of 17 at Textual's 60 per second.
os.environ.setdefault("TEXTUAL_FPS", "120")


def run_chat(options: ChatOptions, opener: Opener | None = None) -> int:
    """Run a chat and return its exit code: full screen on a terminal, lines of text elsewhere.

    `opener` opens a session with the options, by default `macllm.chat.options.open_session`.

    Raises: MacllmError if a chat without the full screen fails; BrokenPipeError if the reader of stdout is gone.
    """
    from .front import run_chat as run

    return run(options, opener) if opener else run(options)

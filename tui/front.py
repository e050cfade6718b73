"""Choice of the interface: full screen, lines on a terminal, or one answer through pipes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import IO

from macllm.chat.options import ChatOptions, open_session
from macllm.chat.session import Session
from macllm.generation.contract import OnStatus
from macllm.generation.sampling import defaults

Opener = Callable[[ChatOptions, OnStatus], Session]


def run_chat(options: ChatOptions, opener: Opener = open_session) -> int:
    """Chat and return the exit code: full screen on a terminal unless `plain`, one answer in a pipe.

    Raises: MacllmError if a chat without the full screen fails.
    """
    defaults.check(options.request())
    terminal = _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
    if terminal and not options.plain and _is_terminal(sys.stderr) and os.environ.get("TERM", "dumb") != "dumb":
        from .app import ChatApp

        app = ChatApp(
            lambda on_status: opener(options, on_status), model_name=options.model_name, prompt=options.prompt
        )
        app.run()
        return app.return_code or 0
    from .plain import LineChat

    chat = LineChat(options, lambda on_status: opener(options, on_status))
    return chat.converse() if terminal else chat.answer_once()


def _is_terminal(stream: IO[str] | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()

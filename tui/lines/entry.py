"""Input of messages on a terminal."""

from __future__ import annotations

import sys


def ask() -> str | None:
    """The user's next message, with backslash-continued lines joined; None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = input("...: " if lines else "you: ")
        except EOFError:
            print(flush=True)
            return None
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends the conversation)", file=sys.stderr, flush=True)
            lines.clear()
            continue
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            return "\n".join(lines)

"""Stop strings in streamed text: found across chunk boundaries, and never shown."""

from __future__ import annotations

from collections.abc import Sequence

from macllm.text.formats.shape import Literals


class StopStrings:
    """Releases text as soon as it cannot be the beginning of a stop string.

    The string that is complete first ends the stream; of two that end together, the one that began first.
    The result does not depend on the chunks in which the text arrives.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._literals = Literals(strings)
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """New text that cannot become part of a stop string; empty once `stopped`."""
        if self.stopped or not text:
            return ""
        text = self._held + text
        ends = [(at + len(s), at) for s in self._strings if (at := text.find(s)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        keep = self._literals.tail(text, 0)
        self._held = text[keep:]
        return text[:keep]

    def finish(self) -> str:
        """Text held back as the possible start of a stop string."""
        held, self._held = self._held, ""
        return held

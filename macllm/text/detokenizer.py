"""Tokens to text, one at a time, exact to the byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .decoding import Stage, run_close, run_push


class Detokenizer:
    """Gives the text of a growing list of tokens, only as far as no later token can change it.

    Everything that `add` and `finish` return, concatenated, is what `Tokenizer.decode` makes of all the tokens.
    One token costs the time of its own text, however long the list is. A decoder that is not known here
    (`stages` None) is asked at the end, through `decode`. `after` are tokens that the list goes on from: their own
    text is left out, and a space between it and the first token stays.
    """

    def __init__(
        self,
        token_of: Callable[[int], str | None],
        stages: Sequence[Stage] | None,
        *,
        skip: frozenset[int] = frozenset(),
        decode: Callable[[list[int]], str],
        after: Sequence[int] = (),
    ) -> None:
        self._token_of = token_of
        self._stages = stages
        self._skip = skip
        self._decode = decode
        self._waiting: list[int] = []
        self._finished = False
        self._owed = 0  # characters of the text before that have not come out yet
        if after:
            given = sum(len(self.add(token_id)) for token_id in after)
            held = decode(list(after))[given:]
            self._owed = len(held.rstrip("\ufffd"))  # an unfinished character is of those who finish it

    def add(self, token_id: int) -> str:
        """The text that this token makes certain; often empty inside a character or a run of bytes."""
        if self._finished:
            raise ValueError("finish() ended this detokenizer; take a new one for more tokens")
        if self._stages is None:
            self._waiting.append(token_id)
            return ""
        if token_id in self._skip:
            return ""
        token = self._token_of(token_id)
        return "" if token is None else self._own(run_push(self._stages, token))

    def finish(self) -> str:
        """What was held back, U+FFFD for a character that stayed incomplete. Ends the list."""
        if self._finished:
            return ""
        self._finished = True
        return self._own(self._decode(self._waiting) if self._stages is None else run_close(self._stages))

    def _own(self, text: str) -> str:
        """The text without what is left in it of the text before."""
        cut = min(self._owed, len(text))
        self._owed -= cut
        return text[cut:]

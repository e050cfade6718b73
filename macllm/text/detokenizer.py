"""Incremental detokenization, exact to the byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .decoding import Stage, close_stages, push_through


class Detokenizer:
    """Streams the text of a growing list of tokens; text that a later token could change is held back.

    The concatenated results of `add` and `finish` equal `Tokenizer.decode` of all tokens. The time per token does not
    depend on the length of the list. With an unsupported decoder (`stages` None) all text comes from `decode` in
    `finish`. `after` are tokens that precede the list: their text is left out, but not the space after it.
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
        self._owed = 0  # characters of the preceding text that the stages still hold back
        if after:
            given = sum(len(self.add(token_id)) for token_id in after)
            held = decode(list(after))[given:]
            self._owed = len(held.rstrip("\ufffd"))  # an unfinished character belongs to the token that completes it

    def add(self, token_id: int) -> str:
        """Text that is certain after this token; often empty inside a character or a run of bytes."""
        if self._finished:
            raise ValueError("finish() ended this detokenizer; take a new one for more tokens")
        if self._stages is None:
            self._waiting.append(token_id)
            return ""
        if token_id in self._skip:
            return ""
        token = self._token_of(token_id)
        return "" if token is None else self._own(push_through(self._stages, token))

    def finish(self) -> str:
        """End the list and return the text held back, with U+FFFD for an incomplete character."""
        if self._finished:
            return ""
        self._finished = True
        return self._own(self._decode(self._waiting) if self._stages is None else close_stages(self._stages))

    def _own(self, text: str) -> str:
        """`text` without the rest of the preceding text."""
        cut = min(self._owed, len(text))
        self._owed -= cut
        return text[cut:]

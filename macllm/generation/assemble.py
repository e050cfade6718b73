"""Assembly of tokens into events: text, cut at stop strings, by part (answer, reasoning, tool calls)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .request import Delta, DeltaKind, TokenLogprob
from .stop import StopStrings

if TYPE_CHECKING:
    from .decode import Sampled


class TextSource(Protocol):
    """Text of tokens, as far as it is certain."""

    def add(self, token_id: int) -> str:
        """The text that this token makes certain."""
        ...

    def finish(self) -> str:
        """The parts held back."""
        ...


class Splitter(Protocol):
    """Text sorted into parts, as far as that is certain."""

    def add(self, text: str) -> Iterable[tuple[DeltaKind, str, int | None]]:
        """The parts that this text makes certain."""
        ...

    def finish(self) -> Iterable[tuple[DeltaKind, str, int | None]]:
        """The text held back."""
        ...


@dataclass(frozen=True)
class _Pending:
    token: int
    logprob: TokenLogprob | None
    start: int  # characters of text before it


class Assembler:
    """Turns the tokens of one completion into deltas; `shown` counts the tokens of the deltas so far.

    Each token is attached to the first delta emitted after it, so that the tokens of all deltas in order are
    the completion's. Tokens of `hidden` have no text. Tokens of a stop string are in no delta.
    """

    def __init__(
        self,
        detokenizer: TextSource,
        splitter: Splitter,
        stop: Iterable[str] = (),
        hidden: frozenset[int] = frozenset(),
    ) -> None:
        self._detokenizer, self._splitter, self._hidden = detokenizer, splitter, hidden
        self._stop = StopStrings(tuple(stop))
        self._pending: list[_Pending] = []
        self._read = 0  # characters from the detokenizer
        self._released = 0  # characters that are certainly not part of a stop string
        self._last: tuple[DeltaKind, int | None] = ("content", None)
        self.shown = 0
        self.kinds: set[DeltaKind] = set()

    @property
    def stopped(self) -> bool:
        """True once a stop string is complete."""
        return self._stop.stopped

    def add(self, sampled: Sampled) -> list[Delta]:
        """The deltas that this token makes certain."""
        self._pending.append(_Pending(sampled.token, sampled.logprob, self._read))
        text = "" if sampled.token in self._hidden else self._detokenizer.add(sampled.token)
        self._read += len(text)
        return self._show(self._stop.add(text))

    def finish(self) -> list[Delta]:
        """The remaining deltas, after the last token."""
        deltas: list[Delta] = []
        if not self.stopped:
            text = self._detokenizer.finish()
            self._read += len(text)
            deltas = self._show(self._stop.add(text))
        if not self.stopped:
            deltas += self._show(self._stop.finish())
        deltas += self._deltas(self._splitter.finish())
        rest = [pending for pending in self._pending if not self.stopped or pending.start < self._released]
        return [*deltas, self._emit("", *self._last, rest)] if rest else deltas

    def _show(self, text: str) -> list[Delta]:
        self._released += len(text)
        return self._deltas(self._splitter.add(text)) if text else []

    def _deltas(self, parts: Iterable[tuple[DeltaKind, str, int | None]]) -> list[Delta]:
        """Deltas of the parts; the first gets the tokens with text that has been released in part."""
        deltas: list[Delta] = []
        for kind, text, call in parts:
            if text:
                begun = [pending for pending in self._pending if pending.start < self._released]
                deltas.append(self._emit(text, kind, call, begun))
        return deltas

    def _emit(self, text: str, kind: DeltaKind, call: int | None, begun: list[_Pending]) -> Delta:
        tokens = tuple(pending.token for pending in begun)
        logprobs = tuple(pending.logprob for pending in begun if pending.logprob is not None)
        del self._pending[: len(begun)]
        self.shown += len(tokens)
        self._last = (kind, call)
        self.kinds.add(kind)
        return Delta(text, kind, tokens, logprobs, call)

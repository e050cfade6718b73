"""Summary of earlier turns by the model, in parts where they are longer than the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from macllm.errors import DoesNotFitError
from macllm.generation.request import Delta, Done, Events, Prefill

from .conversation import Turn

if TYPE_CHECKING:
    from macllm.generation.contract import CompletionEvents

_MOST_TOKENS = 400
_SHORTEST_PART = 200  # characters
_WISH = "in a few short paragraphs. Keep names, numbers, decisions and open questions."
_WHOLE = f"Summarize our conversation so far {_WISH}"
_PART = f"Summarize this conversation, and what was said before it, {_WISH}"
_BEFORE = "Said before:\n"

Message = dict[str, str]
Submit = Callable[[Sequence[Message], int], "CompletionEvents"]


class Summary:
    """A summary of `turns`, asked for by `submit`, which takes messages and the largest number of tokens.

    `opening` are the messages before the turns, `before` is the summary of still earlier ones. The turns are
    summarized in one request; if that is too long for a context of `limit` tokens, the beginning of their text, then
    that summary with the next part, and so on. `text` is the summary, once it is complete.
    """

    def __init__(
        self,
        submit: Submit,
        turns: Sequence[Turn],
        limit: int | None,
        opening: Sequence[Message] = (),
        before: str = "",
    ) -> None:
        self.text: str | None = None
        self._submit = submit
        self._turns = turns
        self._limit = limit
        self._opening = opening
        self._so_far = before
        self._most_tokens = _MOST_TOKENS if limit is None else max(min(_MOST_TOKENS, limit // 4), 1)
        self._cancelled = False
        self._completion: CompletionEvents | None = None

    def cancel(self) -> None:
        """Stop after the current step, without a summary."""
        self._cancelled = True
        if self._completion is not None:
            self._completion.cancel()

    def events(self) -> Events:
        """The events of the summary; of the parts before the last one, only how far they are read.

        Raises: DoesNotFitError if not even a small part fits; the engine's errors.
        """
        messages = [*self._opening, *(turn.message() for turn in self._turns), _asked(_WHOLE)]
        usage = next((turn.usage for turn in reversed(self._turns) if turn.usage), None)
        try:
            if usage is not None:
                self._check(usage.prompt_tokens + usage.completion_tokens)
            yield from self._write(messages)
        except DoesNotFitError:
            yield from self._write_in_parts()

    def _write_in_parts(self) -> Events:
        rest = "\n\n".join(f"{turn.role}: {turn.message()['content']}" for turn in self._turns)
        size = max(len(rest) // 2, _SHORTEST_PART)
        while rest and not self._cancelled:
            part = _beginning(rest, size)
            before = f"{_BEFORE}{self._so_far}\n\n" if self._so_far else ""
            is_last, is_shortest = len(part) == len(rest), size == _SHORTEST_PART
            try:
                yield from self._write([_asked(f"{before}{part}\n\n{_PART}")], is_last, is_checked=not is_shortest)
            except DoesNotFitError:
                if is_shortest:
                    raise
                size = max(size // 2, _SHORTEST_PART)
            else:
                rest = rest[len(part) :]

    def _write(self, messages: Sequence[Message], is_last: bool = True, *, is_checked: bool = True) -> Events:
        text: list[str] = []
        self._completion = self._submit(messages, self._most_tokens)
        if self._cancelled:  # since the part before
            self._completion.cancel()
        with closing(self._completion) as completion:
            for event in completion:
                if isinstance(event, Prefill) and is_checked:
                    self._check(event.total)
                elif isinstance(event, Delta) and event.kind == "content":
                    text.append(event.text)
                elif isinstance(event, Done) and event.finish_reason == "cancelled":
                    self._cancelled = True
                elif isinstance(event, Done):
                    self._so_far = "".join(text).strip()
                    self.text = self._so_far if is_last else None
                if is_last or isinstance(event, Prefill):
                    yield event

    def _check(self, prompt_tokens: int) -> None:
        """Raise DoesNotFitError if the context has no room for a whole summary after the prompt."""
        if self._limit is not None and prompt_tokens + self._most_tokens > self._limit:
            raise DoesNotFitError("The messages leave no room for a summary.", remedy="/drop, or /clear")


def _asked(text: str) -> Message:
    return {"role": "user", "content": text}


def _beginning(text: str, size: int) -> str:
    """The first `size` characters, or fewer up to the end of a line or word."""
    if len(text) <= size:
        return text
    end = max(text.rfind("\n", size // 2, size), text.rfind(" ", size // 2, size)) + 1
    return text[: end or size]

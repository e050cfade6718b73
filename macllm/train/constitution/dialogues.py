"""Dialogues with a speaker, several side by side."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from macllm.errors import DoesNotFitError

Messages = Sequence[Mapping[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Query:
    """Messages to answer, and the seed of the answer."""

    messages: Messages
    seed: int


@dataclass(frozen=True)
class Said:
    """An answer; `finished` is False if the limit of tokens cut it off."""

    text: str
    finished: bool = True


class Respondent(Protocol):
    """The other side of dialogues, of which it holds `batch_size` at once."""

    batch_size: int

    def say_all(self, queries: Sequence[Query]) -> Sequence[Said | DoesNotFitError]:
        """The answer to each query; an error for messages longer than the context."""
        ...


Dialogue = Generator[Sequence[Query], Sequence[Said], T]
"""Queries, whose answers are sent to it; DoesNotFitError is raised in it if one does not fit."""


def held(dialogues: Sequence[Dialogue[T]], speaker: Respondent) -> Iterator[T]:
    """The results of dialogues, whose queries are answered side by side."""
    results: dict[int, T] = {}
    replies: dict[int, Sequence[Said | DoesNotFitError] | None] = dict.fromkeys(range(len(dialogues)))
    while replies:
        waiting: dict[int, Sequence[Query]] = {}
        for number, reply in replies.items():
            try:
                waiting[number] = _next(dialogues[number], reply)
            except StopIteration as end:
                results[number] = end.value
        said = iter(speaker.say_all([query for queries in waiting.values() for query in queries]) if waiting else ())
        replies = {number: [next(said) for _ in queries] for number, queries in waiting.items()}
    return (results[number] for number in range(len(dialogues)))


def _next(dialogue: Dialogue[T], reply: Sequence[Said | DoesNotFitError] | None) -> Sequence[Query]:
    """Its next queries after a reply, None before the first."""
    if reply is None:
        return next(dialogue)
    if error := next((each for each in reply if isinstance(each, DoesNotFitError)), None):
        return dialogue.throw(error)
    return dialogue.send([each for each in reply if isinstance(each, Said)])

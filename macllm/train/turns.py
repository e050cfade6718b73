"""Bounds of the assistant's turns in the text of a conversation.

A turn begins where the conversation before it, with the generation prompt, ends, and ends where the conversation up to
it ends: a template must write the one as a prefix of the other. Rendering each of these prefixes takes time quadratic
in the number of turns. So each turn is rendered after the opening of the conversation and the answer before it only;
where the pieces that are found this way make up the text of the whole conversation, they are its turns. Otherwise all
prefixes are rendered. A template that rewrites old turns (drops their reasoning) gives one text per turn, each of a
conversation that ends there. They are found in linear time too where the text of old turns depends on their neighbours
only; but together their length is quadratic in the number of turns.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from macllm.errors import DataError, MacllmError
from macllm.text.instructions import INSTRUCTIONS

from .alignment import Span, TextTokenizer
from .rows import Messages, weight_of

_SPACE = re.compile(r"\s*")
_QUESTION = {"role": "user", "content": "x"}
_TAIL = 8  # characters at the end of an answer's content by which it is recognized


class UnstableTemplateError(DataError):
    """A chat template whose generation prompt differs from what it writes before the answer."""


@dataclass(frozen=True)
class Rendered:
    """A text, the spans of its answers, and their loss weights.

    `last` is the message of the answer that ends it; None if no answer does.
    """

    text: str
    spans: list[Span]
    weights: list[float]
    last: int | None


class ChatTurns:
    """The messages of a chat row, rendered in whole or in part.

    Answers before message `first` are not learned. Templates read `variables`, and write the date of `now`, or of the
    clock.
    """

    def __init__(
        self, messages: Messages, tools: Any, where: str, tokenizer: TextTokenizer, first: int = 0,
        now: datetime | None = None, variables: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if tokenizer.chat_template is None:
            raise DataError(
                f"{where} is a chat, and the model has no chat template",
                remedy='rows of {"prompt": ..., "completion": ...} or {"text": ...}',
            )
        self.weights = [weight_of(each) * (at >= first) for at, each in enumerate(messages)]
        self.messages = [{name: each[name] for name in each if name != "weight"} for each in messages]
        self.where = where
        self.answers = [at for at, each in enumerate(messages) if each["role"] == "assistant"]
        self.last = self.answers[-1] if self.answers[-1:] == [len(messages) - 1] else None
        contents = (str(messages[at].get("content") or "").rstrip() for at in self.answers)
        self._tails = {content[-_TAIL:] for content in contents if content}
        self._tokenizer = tokenizer
        self._variables = {"tools": tools, **(variables or {}), **({} if now is None else {"now": now})}

    def render(self, messages: Sequence[int], answer_next: bool = False) -> str:
        """The text of some of the messages. Raises DataError with the row's place."""
        return self._written([self.messages[at] for at in messages], answer_next)

    @property
    def is_marked(self) -> bool:
        """True if the template has `{% generation %}` blocks: that for tools, if the row has tools."""
        with self._located():
            return self._tokenizer.chat_template.marks_generation(self._variables["tools"])

    def marked(self) -> Rendered:
        """The text, with the spans that the template's `{% generation %}` blocks mark. Raises DataError."""
        with self._located():
            template, variables = self._tokenizer.chat_template, self._variables
            text, spans, authors = template.render_with_authors(self.messages, **variables)
        return Rendered(text, spans, self._weights_of_marks(spans, authors), self.last)

    def _weights_of_marks(self, spans: list[Span], authors: Sequence[int | None]) -> list[float]:
        """The weight of each span, by the message that it is of. Raises DataError if that is not known."""
        weights = [self.weights[at] for at in self.answers]
        if len(set(weights)) < 2:
            return [*weights[:1], 1.0][:1] * len(authors)
        spoken = [at for at, each in enumerate(self.messages) if each["role"] not in INSTRUCTIONS]
        known = [spoken[author] for author in authors if author is not None]
        if len(known) < len(authors):
            known = self._authors_by_prefixes(spans)
        return [self.weights[at] for at in known]

    def _authors_by_prefixes(self, spans: list[Span]) -> list[int]:
        """The message of each span: an answer has those that the text of the messages before it has not."""
        render = self._tokenizer.chat_template.render_with_spans
        with self._located():
            before = [render(self.messages[:at], **self._variables)[1] if at else [] for at in self.answers]
        counts = [*map(len, before), len(spans)]
        if counts[:1] != [0] or any(each != spans[: len(each)] for each in before):
            raise DataError(
                f"{self.where} has weights, and the blocks that the template marks cannot be told apart",
                remedy="rows without weights, or a template without generation blocks",
            )
        return [at for at, (a, b) in zip(self.answers, pairwise(counts), strict=True) for _ in range(b - a)]

    def gap(self, text: str, stop: int) -> int:
        """The end of the white space after `stop`, if an answer without an end marker ends there, else `stop`."""
        bare = any(text[max(0, stop - size) : stop] in self._tails for size in range(1, _TAIL + 1))
        space = _SPACE.match(text, stop)
        return space.end() if bare and space else stop

    def heading(self, text: str) -> str:
        """The part of `text` before the answer that its conversation begins with.

        It ends with the generation prompt, or before the content if the template has no such prompt. Raises
        UnstableTemplateError.
        """
        plain, asking = self._written([_QUESTION]), self._written([_QUESTION], answer_next=True)
        prompt = asking[_shared(plain, asking) :]
        if not prompt:
            return text[: _shared(text, self._written([{**self.messages[0], "content": "\0"}]))]
        if prompt not in text:
            raise self.unstable(0)
        return text[: text.index(prompt) + len(prompt)]

    def _written(self, messages: Messages, answer_next: bool = False) -> str:
        with self._located():
            return self._tokenizer.render(messages, add_generation_prompt=answer_next, **self._variables)

    def unstable(self, at: int) -> UnstableTemplateError:
        """The error for an answer, message `at`, that does not begin with the generation prompt."""
        return UnstableTemplateError(
            f"{self.where}: cannot find the assistant's tokens",
            cause=f"the template's generation prompt for message {at + 1} differs from the rendered message",
            remedy="mask_prompt = false (train on every token), another chat template, or, if reasoning makes the "
            'difference, "chat_template_kwargs": {"enable_thinking": false} (or true) in the rows',
        )

    def is_closed_by(self, closing: str) -> bool:
        """True if the template writes `closing` after the last answer, and nothing instead after others.

        An answer that ends otherwise once it is an old one (gpt-oss's) has its end in a conversation of its own only.
        """
        asked, again = ({"role": "user", "content": text} for text in ("one question", "another one"))
        try:
            question = self._written([asked])
            answered = self._written([asked, {"role": "assistant", "content": "x"}])
            more = self._written([asked, {"role": "assistant", "content": "x"}, again])
        except DataError:
            return True
        before, _, end = _inner(question, closing).partition(asked["content"])
        stays = _inner(answered, closing)
        between = more.removeprefix(stays).partition(again["content"])[0].lstrip()
        ends_like_a_question = bool(end) and between.startswith(end)
        return more.startswith(stays) and before.endswith(between) and not ends_like_a_question

    def next_turn(self, text: str, last: int) -> str:
        """The text that the template writes for the message after `text`, which the answer `last` ends.

        That is a tool's result if the answer calls one, else a user's message. Empty if the template cannot tell.
        """
        answer = self.messages[last]
        following = _following(answer)
        try:
            more = self._written([*self.messages[: last + 1], following])
            if more.startswith(text):
                return more.removeprefix(text)
            # The template rewrites old answers: an answer without reasoning stays as it is.
            kept = {name: answer[name] for name in ("role", "tool_calls") if name in answer}
            turn = [_QUESTION, {**kept, "content": "x"}]
            text, more = self._written(turn), self._written([*turn, following])
        except DataError:
            return ""
        return more.removeprefix(text) if more.startswith(text) else ""

    @contextmanager
    def _located(self) -> Generator[None]:
        """Prefix template errors with the row's file and line."""
        try:
            yield
        except MacllmError as error:
            raise DataError(f"{self.where}: {error.message}", cause=error.cause, remedy=error.remedy) from error


def _following(answer: dict[str, Any]) -> dict[str, Any]:
    """A message that may follow an answer."""
    if not (calls := answer.get("tool_calls")):
        return _QUESTION
    call = calls[0]
    named = {"name": call["function"]["name"], **({"tool_call_id": call["id"]} if "id" in call else {})}
    return {"role": "tool", **named, "content": "x"}


def _shared(one: str, other: str) -> int:
    """Number of characters that both texts begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def locate(conversation: ChatTurns, closing: str) -> list[Rendered]:
    """The text of a conversation with the spans of its answers, or one text per answer.

    `closing` is the text of the end-of-sequence token: some templates close the conversation with it, not the turn.
    Raises DataError for a template whose answers do not follow its generation prompt.
    """
    full = conversation.render(range(len(conversation.messages)))
    for end in _endings(conversation, closing):
        spans = _by_neighbours(conversation, full, end)
        if spans is not None:
            return [_whole(conversation, full, spans)]
    if conversation.answers and (rewritten := _by_old_forms(conversation, full)) is not None:
        return rewritten
    turns = [_turn(conversation, at) for at in conversation.answers]
    for end in _endings(conversation, closing):
        inner = [(before, before + _inner(after[len(before) :], end)) for before, after in turns]
        if all(full.startswith(after) for _, after in inner):
            return [_whole(conversation, full, [(len(before), len(after)) for before, after in inner])]
    return _singly(conversation, turns)


def _endings(conversation: ChatTurns, closing: str) -> Iterator[str]:
    """Texts that may follow the last answer and no other."""
    yield ""
    if closing and conversation.is_closed_by(closing):
        yield closing


def _singly(conversation: ChatTurns, turns: Sequence[tuple[str, str]]) -> list[Rendered]:
    """One text per answer that has a weight, from the text before each and that up to its end."""
    return [
        Rendered(after, [(len(before), len(after))], [conversation.weights[at]], at)
        for at, (before, after) in zip(conversation.answers, turns, strict=True)
        if conversation.weights[at]
    ]


def _whole(conversation: ChatTurns, text: str, spans: list[Span]) -> Rendered:
    weights = [conversation.weights[at] for at in conversation.answers]
    return Rendered(text, spans, weights, conversation.last)


def _inner(answer: str, closing: str) -> str:
    """An answer without the end of the conversation, and without white space after its end marker.

    Text after the end marker (a line break) is never generated: the end marker stops generation.
    """
    return answer.rstrip().removesuffix(closing).rstrip()


def _turn(conversation: ChatTurns, at: int) -> tuple[str, str]:
    """The rendered text before message `at`, an answer, and the text up to its end."""
    after = conversation.render(range(at + 1))
    before = conversation.render(range(at), answer_next=True) if at else conversation.heading(after)
    if not after.startswith(before):
        raise conversation.unstable(at)
    return before, before + after[len(before) :].rstrip()


def _by_neighbours(conversation: ChatTurns, full: str, closing: str) -> list[Span] | None:
    """The spans of answers, each rendered after its neighbours only; None if they do not fit."""
    spans: list[Span] = []
    end, previous = 0, -1
    try:
        for answer in conversation.answers:
            kept = [*_opening(conversation.messages, previous), previous] if spans else []
            base = _inner(conversation.render(kept), closing) if kept else ""
            earlier = [*kept, *range(previous + 1, answer)]
            after = conversation.render([*earlier, answer])
            before = conversation.render(earlier, answer_next=True) if earlier else conversation.heading(after)
            if not (before.startswith(base) and after.startswith(before)):
                return None
            after = before + _inner(after[len(before) :], closing)
            if not full.startswith(after[len(base) :], end):
                return None
            spans.append((end + len(before) - len(base), end + len(after) - len(base)))
            end, previous = end + len(after) - len(base), answer
    except DataError:  # a template may refuse a part of a conversation that it accepts as a whole
        return None
    return spans


def _by_old_forms(conversation: ChatTurns, full: str) -> list[Rendered] | None:
    """One text per answer: the text before it in `full`, and the answer as the last of its conversation.

    None if the conversation up to it is not written as in `full`: that is compared by the neighbours of each answer.
    The middle and the last answer are compared with the renderings of all messages before them.
    """
    turns: list[tuple[str, str]] = []
    end, previous = 0, -1
    try:
        for answer in conversation.answers:
            opening = _opening(conversation.messages, previous) if turns else range(0)
            earlier = [*opening, *range(max(previous, 0), answer)]
            if not earlier or (turns and not opening):
                return None
            base = conversation.render(opening, answer_next=True) if opening else ""
            before = conversation.render(earlier, answer_next=True)
            after = conversation.render([*earlier, answer])
            piece = before[len(base) :]
            if not (before.startswith(base) and after.startswith(before) and full.startswith(piece, end)):
                return None
            end, previous = end + len(piece), answer
            turns.append((full[:end], full[:end] + after[len(before) :].rstrip()))
        for number in {len(turns) // 2, len(turns) - 1}:
            if turns[number] != _turn(conversation, conversation.answers[number]):
                return None
    except DataError:  # as in `_by_neighbours`
        return None
    return _singly(conversation, turns)


def _opening(messages: Messages, previous: int) -> range:
    """Messages from the first on that may stand before the answer `previous` in place of all before it.

    They end before an answer that is followed by a message of the same role, an even number of messages earlier: some
    templates require that roles alternate.
    """
    following = messages[previous + 1]["role"] if previous + 1 < len(messages) else None
    for at in range(previous % 2, previous, 2):
        if messages[at]["role"] == "assistant" and messages[at + 1]["role"] == following:
            return range(at)
    return range(previous)

"""Tokens and loss mask of a row.

In a chat the loss covers the assistant's turns, end markers included. The bounds of a turn come from the template's
`{% generation %}` block, else from rendering: the conversation before a turn must be a prefix of the conversation with
it. A template that rewrites old turns (drops their reasoning) gives one example per turn instead, each rendered as a
chat that ends there. A template whose answers do not follow its own generation prompt is an error.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from macllm.errors import DataError, MacllmError

from .rows import Chat, PlainText, PromptCompletion, Row


class TextTokenizer(Protocol):
    """The tokenizer interface that training uses."""

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text."""
        ...

    @property
    def chat_template(self) -> Any:
        """The template, or None."""
        ...

    def id_to_token(self, index: int) -> str | None:
        """The token of an id, in the vocabulary's spelling."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ...

    def render(self, messages: Any, *, tools: Any = None, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation."""
        ...


@dataclass(frozen=True)
class Example:
    """Tokens (L,) int32 and their loss mask (L,) bool, which is False for the first token."""

    tokens: np.ndarray
    loss_mask: np.ndarray
    where: str
    splittable: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_target_tokens(self) -> int:
        """Number of supervised tokens."""
        return int(np.count_nonzero(self.loss_mask))

    def cut(self, start: int, stop: int) -> Example:
        """The example of the tokens from `start` to `stop`; nothing predicts its first token."""
        loss_mask = self.loss_mask[start:stop].copy()
        loss_mask[:1] = False
        return replace(self, tokens=self.tokens[start:stop], loss_mask=loss_mask)

    def fingerprint(self) -> bytes:
        """Length, tokens and loss mask."""
        return len(self).to_bytes(8, "little") + self.tokens.tobytes() + self.loss_mask.tobytes()


def to_examples(row: Row, tokenizer: TextTokenizer, mask_prompt: bool) -> list[Example]:
    """Convert a row to examples: one, or one per turn if the template rewrites old turns."""
    match row:
        case PlainText(text, where):
            tokens = _closed(tokenizer.encode(text), tokenizer)
            return [_example(tokens, [(0, len(tokens))], where, splittable=True)]
        case PromptCompletion(prompt, completion, where) if tokenizer.chat_template is None:
            before = tokenizer.encode(prompt)
            tokens = _closed(before + tokenizer.encode(completion, add_special_tokens=False), tokenizer)
            return [_example(tokens, [(len(before) if mask_prompt else 0, len(tokens))], where)]
        case PromptCompletion(prompt, completion, where):
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            return list(_chat(Chat(messages, None, where), tokenizer, mask_prompt))
        case Chat():
            return list(_chat(row, tokenizer, mask_prompt))


def _closed(tokens: list[int], tokenizer: TextTokenizer) -> list[int]:
    """`tokens` with the end-of-sequence token, added if it is missing."""
    end = tokenizer.eos_token_id
    return tokens if end is None or tokens[-1:] == [end] else [*tokens, end]


def _example(tokens: list[int], spans: list[tuple[int, int]], where: str, splittable: bool = False) -> Example:
    loss_mask = np.zeros(len(tokens), dtype=bool)
    for start, stop in spans:
        loss_mask[start:stop] = True
    loss_mask[:1] = False
    return Example(np.array(tokens, dtype=np.int32), loss_mask, where, splittable)


def _chat(row: Chat, tokenizer: TextTokenizer, mask_prompt: bool) -> Iterator[Example]:
    if tokenizer.chat_template is None:
        raise DataError(
            f"{row.where} is a chat, and the model has no chat template",
            remedy='rows of {"prompt": ..., "completion": ...} or {"text": ...}',
        )
    if mask_prompt and tokenizer.chat_template.marks_generation:
        with _locating_errors(row):
            full, spans = tokenizer.chat_template.render_with_spans(row.messages, tools=row.tools)
        yield _align(full, spans, row, tokenizer)
        return
    full = _render(row, len(row.messages), tokenizer, answer_next=False)
    if not mask_prompt:
        tokens = tokenizer.encode(full, add_special_tokens=False)
        yield _example(tokens, [(0, len(tokens))], row.where)
        return
    turns = [_turn(row, i, tokenizer) for i, m in enumerate(row.messages) if m["role"] == "assistant"]
    # Some templates close the conversation, not the turn, with the end-of-sequence token: then the loss excludes it.
    end = tokenizer.eos_token_id
    for closing in ("", "" if end is None else tokenizer.id_to_token(end) or ""):
        inner = [(before, before + after[len(before) :].removesuffix(closing).rstrip()) for before, after in turns]
        if all(full.startswith(after) for _, after in inner):
            yield _align(full, [(len(before), len(after)) for before, after in inner], row, tokenizer)
            return
    for before, after in turns:
        yield _align(after, [(len(before), len(after))], row, tokenizer)


def _turn(row: Chat, i: int, tokenizer: TextTokenizer) -> tuple[str, str]:
    """The rendered text before message `i`, an answer, and the text up to its end."""
    before = _render(row, i, tokenizer, answer_next=True) if i else ""
    after = _render(row, i + 1, tokenizer, answer_next=False)
    if not after.startswith(before):
        raise DataError(
            f"{row.where}: cannot find the assistant's tokens",
            cause=f"the template's generation prompt for message {i + 1} differs from the rendered message",
            remedy="mask_prompt = false (train on every token), or another chat template",
        )
    # Text after the end marker (a line break) is never generated: the end marker stops generation.
    return before, after[: len(before)] + after[len(before) :].rstrip()


def _render(row: Chat, count: int, tokenizer: TextTokenizer, answer_next: bool) -> str:
    with _locating_errors(row):
        return tokenizer.render(row.messages[:count], tools=row.tools, add_generation_prompt=answer_next)


@contextmanager
def _locating_errors(row: Chat) -> Generator[None]:
    """Prefix template errors with the row's file and line."""
    try:
        yield
    except MacllmError as error:
        raise DataError(f"{row.where}: {error.message}", cause=error.cause, remedy=error.remedy) from error


def _align(text: str, spans: list[tuple[int, int]], row: Chat, tokenizer: TextTokenizer) -> Example:
    """Convert `spans` of characters to spans of tokens: all tokens that overlap them."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    reached = [
        (_before(text[:start], tokens, row, tokenizer)[0], sum(_before(text[:stop], tokens, row, tokenizer)))
        for start, stop in spans
    ]
    return _example(tokens, reached, row.where)


def _before(text: str, tokens: list[int], row: Chat, tokenizer: TextTokenizer) -> tuple[int, bool]:
    """Number of `tokens` that lie wholly in the prefix `text`; True if the next token overlaps it."""
    own = tokenizer.encode(text, add_special_tokens=False) if text else []
    same = next((n for n, (a, b) in enumerate(zip(own, tokens, strict=False)) if a != b), min(len(own), len(tokens)))
    if len(own) - same > 1:
        raise DataError(
            f"{row.where}: a turn does not begin or end at a token boundary",
            cause="the tokenizer merges it with the neighbouring text",
            remedy="mask_prompt = false (train on every token)",
        )
    return same, len(own) > same

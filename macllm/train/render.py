"""Tokens and loss mask of a row.

In a chat the loss covers the assistant's turns, end markers included. The bounds of a turn come from the template's
`{% generation %}` blocks, else from rendering (`turns`). An answer whose end is not among its own tokens also learns
the token after it, if that ends an answer: the end of the conversation, or the marker of the next role.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from macllm.errors import DataError

from .alignment import Span, TextTokenizer, align, completion_tokens, text_tokens
from .rows import Chat, Messages, PlainText, PromptCompletion, Row
from .turns import ChatTurns, Rendered, locate

__all__ = ["Example", "TextTokenizer", "to_examples"]


@dataclass(frozen=True)
class Example:
    """Tokens (L,) int32 and their loss mask (L,) bool, which is False for the first token.

    `first_end` is the place of the first supervised token that ends an answer or text: None without any, 0 if that is
    not known. `weights` are the loss weights of the tokens, (L,) float32, if they are not all 0 and 1.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    where: str
    splittable: bool = False
    first_end: int | None = 0
    weights: np.ndarray | None = None

    @property
    def ends(self) -> bool:
        """True if the end of an answer or text is supervised."""
        return self.first_end is not None

    @property
    def sequences(self) -> tuple[np.ndarray, ...]:
        """The tokens alone."""
        return (self.tokens,)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def loss_weights(self) -> np.ndarray:
        """Loss weight of each token, (L,) float32."""
        return self.loss_mask.astype(np.float32) if self.weights is None else self.weights

    @property
    def num_target_tokens(self) -> int:
        """Number of supervised tokens."""
        return int(np.count_nonzero(self.loss_mask))

    def cut(self, start: int, stop: int) -> Example:
        """The example of the tokens from `start` to `stop`; nothing predicts its first token."""
        loss_mask, weights = self.loss_mask[start:stop].copy(), self.weights
        loss_mask[:1] = False
        weights = None if weights is None else np.where(loss_mask, weights[start:stop], np.float32(0))
        tokens, first_end = self.tokens[start:stop], self.first_end
        if first_end:
            first_end = first_end - start if start < first_end < stop else None
        return replace(self, tokens=tokens, loss_mask=loss_mask, first_end=first_end, weights=weights)

    def fingerprint(self) -> bytes:
        """Length, tokens, loss mask and weights."""
        weights = b"" if self.weights is None else self.weights.tobytes()
        return len(self).to_bytes(8, "little") + self.tokens.tobytes() + self.loss_mask.tobytes() + weights


def to_examples(row: Row, tokenizer: TextTokenizer, mask_prompt: bool, now: datetime | None = None) -> list[Example]:
    """Convert a row to examples: one, or one per turn if the template rewrites old turns.

    Templates write the date of `now`, or of the clock. Raises DataError for a row without text to learn.
    """
    match row:
        case PlainText(text, where):
            tokens = _closed(text_tokens(text, tokenizer), tokenizer)
            return [_example(tokens, [(0, len(tokens))], tokenizer, where, splittable=True)]
        case PromptCompletion(str(prompt), str(completion), where) if tokenizer.chat_template is None:
            tokens, start = completion_tokens(prompt, completion, tokenizer, where)
            tokens = _closed(tokens, tokenizer)
            return [_example(tokens, [(start if mask_prompt else 0, len(tokens))], tokenizer, where)]
        case PromptCompletion(prompt, completion, where, tools, variables):
            asked, answer = _messages(prompt, "user"), _messages(completion, "assistant")
            unlearned = len(asked) if mask_prompt else 0
            conversation = ChatTurns([*asked, *answer], tools, where, tokenizer, unlearned, now, variables)
        case Chat(messages, tools, where, variables):
            conversation = ChatTurns(messages, tools, where, tokenizer, 0, now, variables)
        case _:
            raise DataError(
                f"{row.where} is a row of kind {row.kind}",
                cause=f"such rows are for {row.use}; language modelling learns from texts and answers",
                remedy='rows of {"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...}',
            )
    return list(_chat(conversation, tokenizer, mask_prompt))


def _messages(text: str | Messages, role: str) -> Messages:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _closed(tokens: list[int], tokenizer: TextTokenizer) -> list[int]:
    """`tokens` with the end-of-sequence token, added if it is missing."""
    end = tokenizer.eos_token_id
    return tokens if end is None or tokens[-1:] == [end] else [*tokens, end]


def _chat(conversation: ChatTurns, tokenizer: TextTokenizer, mask_prompt: bool) -> Iterator[Example]:
    everything = not mask_prompt
    for rendered in _rendered(conversation, tokenizer, everything):
        gaps = [(stop, conversation.gap(rendered.text, stop)) for _, stop in rendered.spans]
        tokens, spans = align(rendered.text, [*rendered.spans, *gaps], tokenizer, conversation.where)
        spans, reached = spans[: len(gaps)], [stop for _, stop in spans[len(gaps) :]]
        if not everything:
            tokens, spans = _with_ends(tokens, spans, reached, rendered, conversation.next_turn, tokenizer)
        yield _example(tokens, spans, tokenizer, conversation.where, rendered.weights, unspanned=float(everything))


def _rendered(conversation: ChatTurns, tokenizer: TextTokenizer, everything: bool) -> list[Rendered]:
    if everything and all(weight == 1 for weight in conversation.weights):
        full = conversation.render(range(len(conversation.messages)))
        return [Rendered(full, [], [], conversation.last)]
    if conversation.is_marked:
        return [conversation.marked()]
    end = tokenizer.eos_token_id
    made = locate(conversation, "" if end is None else tokenizer.id_to_token(end) or "")
    if everything and len(made) != 1:
        raise DataError(
            f"{conversation.where} has weights, and the template rewrites earlier answers",
            remedy="mask_prompt = true, or rows without weights",
        )
    return made


def _with_ends(
    tokens: list[int], spans: list[Span], reached: list[int], rendered: Rendered, next_turn: Callable[[str, int], str],
    tokenizer: TextTokenizer,
) -> tuple[list[int], list[Span]]:  # fmt: skip
    """The spans extended to the token that ends each answer, where the answer does not contain its end.

    `reached` are the tokens up to the end of the white space after each answer. After the last answer the text may be
    over: then its end is the first token of a next turn, if that ends answers.
    """
    ends = tokenizer.end_token_ids
    made: list[Span] = []
    for (start, stop), after, weight in zip(spans, reached, rendered.weights, strict=True):
        if start < stop and weight and ends.isdisjoint(tokens[start:stop]):
            after = max(stop, after)
            if after == len(tokens) and rendered.last is not None:
                following = tokenizer.encode(next_turn(rendered.text, rendered.last), add_special_tokens=False)[:1]
                tokens = [*tokens, *following] if not ends.isdisjoint(following) else tokens
            stop = after + 1 if after < len(tokens) and tokens[after] in ends else stop
        made.append((start, stop))
    return tokens, made


def _example(
    tokens: list[int], spans: Sequence[Span], tokenizer: TextTokenizer, where: str, weights: Sequence[float] = (),
    splittable: bool = False, unspanned: float = 0.0,
) -> Example:  # fmt: skip
    """The example of tokens whose spans have these loss weights, and `unspanned` elsewhere."""
    values = np.full(len(tokens), unspanned, dtype=np.float32)
    for (start, stop), weight in zip(spans, weights or [1.0] * len(spans), strict=True):
        values[start:stop] = weight
    values[:1] = 0
    ids = np.array(tokens, dtype=np.int32)
    learned = values > 0
    ends = np.flatnonzero(learned & np.isin(ids, list(tokenizer.end_token_ids)))
    first_end = 0 if not learned.any() else int(ends[0]) if len(ends) else None
    return Example(ids, learned, where, splittable, first_end, None if np.array_equal(values, learned) else values)

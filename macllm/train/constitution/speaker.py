"""A model that answers, criticizes, revises, and chooses between two answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import mlx.core as mx

from macllm.errors import DoesNotFitError, UsageError
from macllm.generation.stream import generate
from macllm.nn.protocol import LanguageModel
from macllm.text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


class Speaker(Protocol):
    """Answers to messages, and the judge of two answers."""

    def say(self, messages: Messages, seed: int) -> str:
        """An answer to the messages. Raises DoesNotFitError for messages longer than the context."""
        ...

    def prefers_first(self, messages: Messages) -> float:
        """The log-odds of A over B as the reply to a question with these two choices."""
        ...


class ModelSpeaker:
    """A speaker by a chat model. Raises UsageError for one without a chat template."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, name: str, *, max_tokens: int, temperature: float
    ) -> None:
        if tokenizer.chat_template is None:
            raise UsageError(f"{name} has no chat template", remedy="a model for chats")
        self._model, self._tokenizer = model, tokenizer
        self._max_tokens, self._temperature = max_tokens, temperature
        self._letters = [_letter_ids(tokenizer, letter) for letter in "AB"]
        if not all(self._letters):
            raise UsageError(f"{name} cannot choose between A and B", cause="its tokenizer has no tokens for them")

    def say(self, messages: Messages, seed: int) -> str:
        """An answer to the messages, without its reasoning."""
        completion = generate(
            self._model,
            self._tokenizer,
            messages,
            max_tokens=self._max_tokens,
            temperature=self._temperature,
            seed=seed,
        )
        return completion.text.strip()

    def prefers_first(self, messages: Messages) -> float:
        """The log-odds of the next token being A rather than B, each with and without a space before it."""
        ids, most = self._tokenizer.encode_chat(messages), self._model.info.context_length
        if most is not None and len(ids) > most:
            raise DoesNotFitError(f"the question has {len(ids):,} tokens; the model's context has {most:,}")
        hidden = self._model.hidden(mx.array(ids)[None])
        logits = self._model.logits(hidden[:, -1:])[0, 0].astype(mx.float32)
        first, second = (mx.logsumexp(logits[mx.array(ids)]) for ids in self._letters)
        return cast("float", (first - second).item())


def _letter_ids(tokenizer: Tokenizer, letter: str) -> list[int]:
    """The tokens that are this letter, with or without a space before it."""
    spelled = (tokenizer.encode(text, add_special_tokens=False) for text in (letter, f" {letter}"))
    return sorted({ids[0] for ids in spelled if len(ids) == 1})

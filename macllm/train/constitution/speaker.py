"""A model that answers, criticizes, revises, and chooses between two answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import mlx.core as mx
import numpy as np

from macllm.errors import DoesNotFitError, UsageError
from macllm.generation.completion import assembler, end_tokens
from macllm.generation.decode import Sampled
from macllm.generation.limits import answer_limit, check
from macllm.generation.prompt import encode_prompt
from macllm.generation.request import Request
from macllm.generation.stream import generate, make_request
from macllm.nn.protocol import LanguageModel
from macllm.text.tokenizer import Tokenizer
from macllm.train.rollouts.sampling import SampledCompletion, SamplingTask, sample

from .dialogues import Messages, Query, Respondent, Said


class Speaker(Respondent, Protocol):
    """A respondent that also judges two answers."""

    def prefers_first(self, messages: Messages) -> float:
        """The log-odds of A over B as the reply to a question with these two choices."""
        ...


class ModelSpeaker:
    """A speaker by a chat model, `batch_size` answers at once. Raises UsageError without a chat template."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        name: str,
        *,
        max_tokens: int,
        temperature: float,
        batch_size: int = 1,
    ) -> None:
        if tokenizer.chat_template is None:
            raise UsageError(f"{name} has no chat template", remedy="a model for chats")
        self._model, self._tokenizer = model, tokenizer
        self._options = {"max_tokens": max_tokens, "temperature": temperature}
        self.batch_size = batch_size if model.info.kind == "decoder" else 1
        self._letters = [_letter_ids(tokenizer, letter) for letter in "AB"]
        if not all(self._letters):
            raise UsageError(f"{name} cannot choose between A and B", cause="its tokenizer has no tokens for them")

    def say_all(self, queries: Sequence[Query]) -> list[Said | DoesNotFitError]:
        """The answers, without their reasoning. Their batches depend on the order of the queries alone."""
        said: list[Said | DoesNotFitError] = []
        for start in range(0, len(queries), self.batch_size):
            said += self._batch(queries[start : start + self.batch_size])
        return said

    def _batch(self, queries: Sequence[Query]) -> list[Said | DoesNotFitError]:
        """The answers to queries side by side."""
        said: dict[int, Said | DoesNotFitError] = {}
        asked: dict[int, tuple[Request, tuple[int, ...]]] = {}
        for number, query in enumerate(queries):
            try:
                if self.batch_size == 1:
                    said[number] = self._alone(query)
                else:
                    asked[number] = self._checked(query)
            except DoesNotFitError as error:
                said[number] = error
        said |= zip(asked, self._side_by_side(list(asked.values())), strict=True)
        return [said[number] for number in range(len(queries))]

    def _alone(self, query: Query) -> Said:
        made = generate(self._model, self._tokenizer, query.messages, seed=query.seed, **self._options)
        return Said(made.text.strip(), made.finish_reason != "length")

    def _checked(self, query: Query) -> tuple[Request, tuple[int, ...]]:
        """The request for an answer, and the tokens of its prompt."""
        request = make_request(self._model, self._tokenizer, query.messages, {**self._options, "seed": query.seed})
        prompt = encode_prompt(self._tokenizer, request)
        check(self._model.info, request, prompt)
        return request, prompt

    def _side_by_side(self, asked: Sequence[tuple[Request, tuple[int, ...]]]) -> list[Said]:
        if not asked:
            return []
        model, (first, _) = self._model, asked[0]
        tasks = [
            SamplingTask(
                np.array(prompt, np.int32), [each.sampling.seed or 0], answer_limit(model.info, each, len(prompt))
            )
            for each, prompt in asked
        ]
        ends = end_tokens(model.info, self._tokenizer, first)
        return [
            self._said(*each, completion, ends)
            for each, (completion,) in zip(asked, sample(model, tasks, ends=ends, params=first.sampling), strict=True)
        ]

    def _said(
        self, request: Request, prompt: tuple[int, ...], completion: SampledCompletion, ends: frozenset[int]
    ) -> Said:
        """The text of a completion, up to a stop string."""
        text = assembler(self._model.info, self._tokenizer, request, prompt)
        shown = [text.add(Sampled(token)) for token in completion.tokens.tolist() if token not in ends]
        deltas = [delta for each in (*shown, text.finish()) for delta in each]
        answer = "".join(delta.text for delta in deltas if delta.kind == "content")
        return Said(answer.strip(), text.stopped or not completion.truncated)

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

"""A reward by the model itself: the probability of Yes when it is asked about an answer."""

from __future__ import annotations

import re
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import DoesNotFitError, UsageError
from macllm.nn import lora
from macllm.nn.protocol import LanguageModel
from macllm.text.tokenizer import encode_unended
from macllm.train.inference import evaluating
from macllm.train.render import TextTokenizer

from .answers import Answers

_PLACE = re.compile(r"\{(prompt|completion)\}")
_QUESTION = "Question: {prompt}\nAnswer: {completion}\n\nIs this a good answer? Reply with Yes or No."


class Judge:
    """p(Yes) / (p(Yes) + p(No)) of the next token after a question, by the model without its adapter."""

    def __init__(self, model: LanguageModel, tokenizer: TextTokenizer, question: str) -> None:
        """Raises UsageError for a tokenizer that begins Yes and No with the same token."""
        self._model, self._tokenizer, self._question = model, tokenizer, question or _QUESTION
        starts = "" if tokenizer.chat_template is not None else " "
        self._words = [tokenizer.encode(f"{starts}{word}", add_special_tokens=False)[0] for word in ("Yes", "No")]
        if self._words[0] == self._words[1]:
            raise UsageError(
                "the reward judge needs two tokens for Yes and No", cause="this tokenizer has one for both"
            )

    def __call__(self, answers: Answers) -> list[float]:
        """A number between 0 and 1 for each answer. Raises DoesNotFitError for a question beyond the context."""
        model = cast("nn.Module", self._model)
        with lora.disabled(model), evaluating(model):
            return [self._asked(_text(answers.prompt), each, answers.where) for each in answers.completions]

    def _asked(self, prompt: str, completion: str, where: str) -> float:
        given = {"prompt": prompt, "completion": completion}
        text = _PLACE.sub(lambda place: given[place[1]], self._question)  # braces within the values stay as they are
        tokenizer = self._tokenizer
        if tokenizer.chat_template is None:
            tokens = encode_unended(tokenizer, text)
        else:
            asked = tokenizer.render([{"role": "user", "content": text}])
            tokens = tokenizer.encode(asked, add_special_tokens=False)
        context = self._model.info.context_length
        if context and len(tokens) > context:
            raise DoesNotFitError(
                f"the judge's question about {where} has {len(tokens)} tokens, and the model's context is {context}",
                remedy="a smaller --max-completion-length, or a shorter --judge",
            )
        hidden = self._model.hidden(mx.array([tokens], dtype=mx.int32))
        logits = self._model.logits(hidden[:, -1:])[0, -1].astype(mx.float32)
        return float(cast("float", mx.softmax(logits[mx.array(self._words)])[0].item()))


def _text(prompt: Any) -> str:
    """A prompt as text: the contents of messages, one after another."""
    return prompt if isinstance(prompt, str) else "\n".join(str(each.get("content") or "") for each in prompt)

"""Requests checked against a model's vocabulary and context."""

from __future__ import annotations

from collections.abc import Sequence

from macllm.errors import DoesNotFitError, UsageError
from macllm.nn.info import ModelInfo

from . import defaults
from .request import Request

UNBOUNDED_ANSWER_TOKENS = 4096  # of a completion for which neither the request nor the model states a limit


def check(info: ModelInfo, request: Request, prompt: Sequence[int]) -> None:
    """Raises UsageError for a request that no model or not this one can take, DoesNotFitError for a long prompt."""
    defaults.check(request, info.vocab_size)
    if info.kind == "encoder":
        remedy = "macllm.embed(model, tokenizer, texts)"
        raise UsageError("this model encodes text and cannot generate any", remedy=remedy)
    if not prompt:
        raise UsageError("the prompt is empty", remedy="give at least one word")
    known = info.prompt_vocab_size
    wrong = [token for token in prompt if token < 0 or (known is not None and token >= known)]
    if wrong:
        raise UsageError(f"the prompt has the token {wrong[0]}; this model's are from 0 to {(known or 0) - 1}")
    made_for = info.context_length
    if request.max_context and made_for and request.max_context > made_for:
        raise UsageError(f"max_context is {request.max_context}; this model's context holds {made_for} tokens")
    limit = request.max_context or made_for
    if limit is not None and len(prompt) + (info.kind == "decoder") > limit:
        wider = f", a max_context of up to {made_for}" if request.max_context and made_for != limit else ""
        raise DoesNotFitError(
            f"the prompt has {len(prompt)} tokens; the context holds {limit}, the answer included",
            remedy=f"a shorter prompt or a new conversation{wider}, or a model with a longer context",
        )


def room(info: ModelInfo, request: Request, prompt_tokens: int) -> int:
    """Tokens that can be drawn before `max_tokens` or the context ends."""
    limit = request.max_context or info.context_length
    if limit is None:
        return request.max_tokens or UNBOUNDED_ANSWER_TOKENS
    left = limit - (prompt_tokens if info.kind == "decoder" else 0)
    return left if request.max_tokens is None else min(request.max_tokens, left)

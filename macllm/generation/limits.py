"""Requests checked against a model's vocabulary and context."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral

from macllm.errors import CheckpointError, DoesNotFitError, UsageError
from macllm.nn.info import ModelInfo

from .request import Request
from .sampling import defaults
from .sampling.ranges import shown

log = logging.getLogger("macllm")

UNBOUNDED_ANSWER_TOKENS = 4096  # if neither the request nor the model sets a limit


def check_kind(info: ModelInfo) -> None:
    """Raise UsageError for a model that generates no text: a classifier or an encoder."""
    if info.labels is not None:
        remedy = "macllm.classify(model, tokenizer, texts), macllm.tag or macllm.reward"
        raise UsageError("this model classifies and cannot generate text", remedy=remedy)
    if info.kind == "encoder":
        remedy = "macllm.embed(model, tokenizer, texts)"
        raise UsageError("this model is an encoder and cannot generate text", remedy=remedy)


def check(info: ModelInfo, request: Request, prompt: Sequence[int]) -> None:
    """Raise UsageError for a request that this model does not support, DoesNotFitError for a long prompt."""
    defaults.check(request, info.vocab_size)
    check_kind(info)
    if info.kind == "encoder-decoder" and request.answer_start:
        raise UsageError("an encoder-decoder cannot continue an answer", remedy="ask again without answer_start")
    if not prompt:
        raise UsageError("the prompt is empty", remedy="give at least one word")
    prompt = (*prompt, *request.answer_start)
    for token in prompt:
        if not isinstance(token, int | Integral):
            raise UsageError(
                f"the prompt has {shown(token)}; it must be a sequence of token ids", remedy="tokenizer.encode(text)"
            )
    known = info.prompt_vocab_size
    wrong = [token for token in prompt if token < 0 or (known is not None and token >= known)]
    if wrong:
        raise UsageError(f"the prompt has the token {wrong[0]}; this model's tokens are 0 to {(known or 0) - 1}")
    _check_max_context(info, request.max_context)
    limit = request.max_context or info.context_length
    if limit is not None and len(prompt) + (info.kind == "decoder") > limit:
        raise DoesNotFitError(
            f"the prompt has {len(prompt)} tokens; the context holds {limit}, including the answer",
            remedy=f"a shorter prompt, a new conversation{_wider(info, limit)}, or a model with a longer context",
        )


def _check_max_context(info: ModelInfo, max_context: int | None) -> None:
    """Raise UsageError beyond a learned table of positions; warn once beyond the trained length."""
    if max_context is None:
        return
    if info.position_count is not None and max_context > info.position_count:
        raise UsageError(
            f"max_context is {max_context}; this model has {info.position_count} positions",
            cause="its position embeddings are a learned table of that length",
            remedy=f"a max_context of at most {info.position_count}, or a model with a longer context",
        )
    if info.context_length is not None and max_context > info.context_length:
        _warn_beyond(max_context, info.context_length)


@lru_cache
def _warn_beyond(max_context: int, trained: int) -> None:
    log.warning("max_context is %d, but the model supports %d tokens: answers beyond may be poor", max_context, trained)


def _wider(info: ModelInfo, limit: int) -> str:
    """A remedy that raises max_context, as part of a list of remedies."""
    most = info.position_count or info.context_length
    if most is not None and most > limit:
        return f", a max_context of up to {most}"
    return "" if info.position_count is not None else f", a max_context above {limit} (answers may be poor)"


def answer_limit(info: ModelInfo, request: Request, prompt_tokens: int) -> int:
    """Number of tokens that can be generated within `max_tokens` and the context."""
    limit = request.max_context or info.context_length
    if limit is None:
        return request.max_tokens or UNBOUNDED_ANSWER_TOKENS
    left = limit - (prompt_tokens if info.kind == "decoder" else 0)
    return left if request.max_tokens is None else min(request.max_tokens, left)


def not_finite(what: str) -> CheckpointError:
    """The error for a model whose `what` are NaN or infinite."""
    return CheckpointError(
        f"the model computes {what} that are NaN or infinite",
        cause="its weights are damaged, or its activations exceed the range of float16",
        remedy="macllm models verify NAME; then dtype=mlx.core.float32 in macllm.load, or another copy of the model",
    )

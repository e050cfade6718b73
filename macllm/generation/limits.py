"""What a model can take: its vocabulary, its context, and requests that fit both."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from macllm.errors import DoesNotFitError, UsageError
from macllm.nn.spec import DynamicScaling, EncoderDecoderSpec, EncoderSpec, LongScaling

from . import defaults
from .request import Request


def check(model: Any, request: Request) -> None:
    """Raises UsageError for a request that no model or not this one can take, DoesNotFitError for a long prompt."""
    vocabulary, made_for = vocab_size(model), context_length(model)
    defaults.check(request, vocabulary)
    if isinstance(_spec(model), EncoderSpec):
        remedy = "macllm.embed(model, tokenizer, texts)"
        raise UsageError("this model encodes text and cannot generate any", remedy=remedy)
    if not request.prompt:
        raise UsageError("the prompt is empty", remedy="give at least one word")
    wrong = [token for token in request.prompt if token < 0 or (vocabulary is not None and token >= vocabulary)]
    if wrong:
        raise UsageError(f"the prompt has the token {wrong[0]}; this model's are from 0 to {(vocabulary or 0) - 1}")
    if request.max_context and made_for and request.max_context > made_for:
        raise UsageError(f"max_context is {request.max_context}; this model's context holds {made_for} tokens")
    limit = request.max_context or made_for
    if limit is not None and len(request.prompt) + (not is_encoder_decoder(model)) > limit:
        wider = f", a max_context of up to {made_for}" if request.max_context and made_for != limit else ""
        raise DoesNotFitError(
            f"the prompt has {len(request.prompt)} tokens; the context holds {limit}, the answer included",
            remedy=f"a shorter prompt or a new conversation{wider}, or a model with a longer context",
        )


def room(model: Any, request: Request) -> int:
    """How many tokens can be drawn before `max_tokens` or the context ends."""
    limit = request.max_context or context_length(model)
    used = 0 if is_encoder_decoder(model) else len(request.prompt)
    return request.max_tokens if limit is None else min(request.max_tokens, limit - used)


def length_class(model: Any, request: Request) -> Hashable:
    """What the length that the request may reach means for rotations that depend on it; None if none does.

    Keys that were rotated for one class are wrong in another: a conversation that leaves its class is computed anew.
    """
    reach = request.max_context or len(request.prompt) + room(model, request)
    layers = getattr(getattr(_spec(model), "decoder", None), "layers", ())
    classes: set[Hashable] = set()
    for layer in layers:
        scaling = layer.attention.rope.scaling if layer.attention.rope else None
        if isinstance(scaling, DynamicScaling):
            classes.add(max(reach, scaling.trained))
        elif isinstance(scaling, LongScaling):
            classes.add(reach > scaling.trained)
    return frozenset(classes) or None


def context_length(model: Any) -> int | None:
    """Positions the model was made for; None where no limit is known."""
    return getattr(_spec(model), "context_length", None)


def vocab_size(model: Any) -> int | None:
    """How many tokens the model knows."""
    embedding = getattr(_spec(model), "target", None) or getattr(_spec(model), "embedding", None)
    return getattr(embedding, "vocab_size", None)


def is_encoder_decoder(model: Any) -> bool:
    """Whether the prompt is the encoder's."""
    return isinstance(_spec(model), EncoderDecoderSpec)


def generation_config(model: Any) -> Mapping[str, Any]:
    """What the checkpoint's generation_config.json says."""
    return getattr(model, "generation_config", None) or {}


def _spec(model: Any) -> Any:
    """The model's spec; None for one that mlx-lm describes."""
    return getattr(model, "spec", None)

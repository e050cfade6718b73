"""Requests that take an answer's settings up again: continuation and comparison."""

from __future__ import annotations

from dataclasses import replace

from macllm.errors import UsageError
from macllm.generation.contract import EngineInfo
from macllm.generation.request import Request

from .answer import PartialAnswer
from .conversation import Conversation, Origin, Turn


def continuation(conversation: Conversation, info: EngineInfo, max_tokens: int | None) -> tuple[Request, PartialAnswer]:
    """The request that continues the last answer, and the answer to collect in its place.

    Raises: UsageError if there is none, if it has ended, or if another model made it.
    """
    last = conversation.read[-1] if conversation.read else None
    if last is None or last.turn.role != "assistant" or last.turn.finish in ("stop", "tool_calls"):
        raise UsageError(
            "There is no unfinished answer to continue.",
            cause="the last answer has ended" if last and last.turn.role == "assistant" else None,
            remedy="write a message, or /regen",
        )
    origin = _origin(last.turn, info)
    request = Request(
        messages=tuple(replace(conversation, system=origin.system).messages[:-1]),
        answer_start=last.turn.tokens,
        adapter=origin.adapter is not None or info.adapter is None,
        max_tokens=max_tokens,
        sampling=origin.sampling,
    )
    return request, PartialAnswer(conversation, origin, last.id)


def comparison(conversation: Conversation, info: EngineInfo) -> tuple[Request, PartialAnswer]:
    """The request that answers the last question with the other adapter state, and the answer.

    Seed, settings and system prompt are those of the last answer. Raises: UsageError if there is none, if another model
    made it, or if there is no adapter.
    """
    last = conversation.read[-1] if conversation.read else None
    if last is None or last.turn.role != "assistant":
        raise UsageError("There is no answer to compare with.", remedy="write a message first")
    if info.adapter is None:
        raise UsageError("The model has no adapter to compare with.", remedy="/adapter chooses one")
    origin = _origin(last.turn, info)
    asked = conversation.at(last.parent)
    other = replace(origin, adapter=None if origin.adapter else info.adapter)
    request = Request(
        messages=tuple(replace(asked, system=origin.system).messages),
        adapter=other.adapter is not None,
        max_tokens=origin.max_tokens,
        sampling=origin.sampling,
    )
    return request, PartialAnswer(asked, other)


def _origin(answer: Turn, info: EngineInfo) -> Origin:
    """The origin of an answer, with its seed. Raises: UsageError for the answer of another model."""
    origin = answer.origin
    if origin is None or not answer.tokens:
        raise UsageError(
            "The answer cannot be taken up again.", cause="its tokens and settings are not known", remedy="/regen"
        )
    if origin.model != info.model_name:
        cause = f"{origin.model} gave it, not {info.model_name}"
        raise UsageError("The answer is another model's.", cause=cause, remedy="/regen")
    if origin.adapter not in (None, info.adapter):
        cause = f"{origin.adapter} is not active"
        remedy = f"/adapter {origin.adapter}, or /regen"
        raise UsageError("The answer was made with another adapter.", cause=cause, remedy=remedy)
    seed = origin.sampling.seed if answer.seed is None else answer.seed
    return replace(origin, sampling=replace(origin.sampling, seed=seed))

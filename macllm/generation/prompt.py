"""The prompt of a request as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from macllm.errors import UsageError

from .request import Request

if TYPE_CHECKING:
    from macllm.text.tokenizer import Tokenizer


def encode_prompt(tokenizer: Tokenizer, request: Request) -> tuple[int, ...]:
    """The tokens of a request's prompt, text or messages.

    Raises UsageError for a request that has both, or tools without a chat template; TemplateError where the template
    refuses.
    """
    if request.messages and request.prompt:
        raise UsageError("a request has a prompt and messages", remedy="leave one of the two away")
    if not continues(tokenizer, request):
        messages: tuple[Mapping[str, Any], ...] = request.messages or ({"role": "user", "content": request.prompt},)
        return tuple(tokenizer.encode_chat(messages, tools=request.tools or None, **request.variables))
    if request.tools or request.variables:
        raise UsageError(
            "tools and variables are for a chat template, and this prompt goes in without one", remedy="send messages"
        )
    if isinstance(request.prompt, str):
        return tuple(tokenizer.encode(request.prompt)) if request.prompt else ()
    return request.prompt


def continues(tokenizer: Tokenizer, request: Request) -> bool:
    """True for a request whose completion goes on with the prompt instead of answering it."""
    if request.messages:
        return False
    answered = isinstance(request.prompt, str) and request.prompt and not request.raw
    return not answered or tokenizer.chat_template is None

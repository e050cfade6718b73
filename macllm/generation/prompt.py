"""The prompt of a request as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from macllm.errors import UsageError
from macllm.nn.info import Described
from macllm.text.messages import kind_of, read_messages

from .request import Request

if TYPE_CHECKING:
    from macllm.text.tokenizer import Tokenizer

_CALL = "generate(model, tokenizer, prompt), with model, tokenizer = macllm.load(NAME)"
_OWN_VARIABLES = ("messages", "tools")  # of the template, which the request gives by themselves


def check_pair(model: object, tokenizer: object) -> None:
    """Raises UsageError where a model and a tokenizer are swapped, or one of them is something else."""
    if not isinstance(model, Described):
        if isinstance(tokenizer, Described):
            raise UsageError("The model and the tokenizer are swapped.", remedy=_CALL)
        raise UsageError(f"The model is {kind_of(model)}, not a model of macllm.", remedy=_CALL)
    if isinstance(tokenizer, str) or not hasattr(tokenizer, "encode"):
        raise UsageError(f"The tokenizer is {kind_of(tokenizer)}, not a tokenizer of macllm.", remedy=_CALL)


def read_prompt(prompt: Any) -> str | tuple[dict[str, Any], ...]:
    """A text as it is, or messages in the form of `macllm.text.messages`.

    Raises UsageError for anything else, and for a message that cannot be taken, with its place.
    """
    if isinstance(prompt, str):
        return prompt
    if prompt is None or isinstance(prompt, int | float) or hasattr(prompt, "encode") or isinstance(prompt, Described):
        raise UsageError(f"The prompt is {kind_of(prompt)}, neither a string nor messages.", remedy=_CALL)
    if isinstance(prompt, list | tuple) and prompt and all(isinstance(each, int) for each in prompt):
        raise UsageError("The prompt is a list of tokens.", remedy="put them into a request: Request(prompt=(...))")
    return tuple(read_messages(prompt))


def encode_prompt(tokenizer: Tokenizer, request: Request) -> tuple[int, ...]:
    """The tokens of a request's prompt, text or messages.

    Raises UsageError for a request that has both, tools without a chat template, or messages that cannot be taken;
    TemplateError where the template refuses.
    """
    _check_variables(request.variables)
    if request.messages and request.prompt:
        raise UsageError("a request has a prompt and messages", remedy="leave one of the two away")
    if request.messages and request.raw:
        raise UsageError("raw continues a text, and these are messages", remedy="send a text, or leave raw out")
    if not continues(tokenizer, request):
        messages: tuple[Mapping[str, Any], ...] = request.messages or ({"role": "user", "content": request.prompt},)
        return tuple(tokenizer.encode_chat(messages, tools=request.tools or None, **request.variables))
    if request.tools or request.variables:
        raise UsageError(
            "tools and variables are for a chat template, and this prompt goes in without one", remedy="send messages"
        )
    if isinstance(request.prompt, str):
        return tuple(tokenizer.encode(request.prompt)) if request.prompt else ()
    if not isinstance(request.prompt, list | tuple):
        raise UsageError(f"The prompt is {kind_of(request.prompt)}, neither a string nor tokens.")
    return tuple(request.prompt)


def _check_variables(variables: Any) -> None:
    if not isinstance(variables, Mapping):
        raise UsageError(
            f"variables is {kind_of(variables)}; it must be a mapping from names to values for the chat template"
        )
    for name in variables:
        if not isinstance(name, str) or name in _OWN_VARIABLES:
            remedy = f"{name}=..." if name in _OWN_VARIABLES else "names are strings"
            raise UsageError(f"variables has {name!r}, which is no variable of a chat template", remedy=remedy)


def continues(tokenizer: Tokenizer, request: Request) -> bool:
    """True for a request whose completion goes on with the prompt instead of answering it."""
    if request.messages:
        return False
    answered = isinstance(request.prompt, str) and request.prompt and not request.raw
    return not answered or tokenizer.chat_template is None

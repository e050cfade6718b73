"""The prompt of a request as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from macllm.errors import UsageError
from macllm.nn.info import Described, ModelKind
from macllm.text.messages import kind_of, read_messages
from macllm.text.tokenizer import encode_unended

from .request import Request

if TYPE_CHECKING:
    from macllm.text.tokenizer import Tokenizer

_CALL = "generate(model, tokenizer, prompt), with model, tokenizer = macllm.load(NAME)"
_OWN_VARIABLES = ("messages", "tools")  # variables of the template with fields of their own in the request


def check_pair(model: object, tokenizer: object) -> None:
    """Raise UsageError if model and tokenizer are swapped, or one of them has the wrong type."""
    if not isinstance(model, Described):
        if isinstance(tokenizer, Described):
            raise UsageError("The model and the tokenizer are swapped.", remedy=_CALL)
        raise UsageError(f"The model is {kind_of(model)}, not a macllm model.", remedy=_CALL)
    if isinstance(tokenizer, str) or not hasattr(tokenizer, "encode"):
        raise UsageError(f"The tokenizer is {kind_of(tokenizer)}, not a macllm tokenizer.", remedy=_CALL)


def read_prompt(prompt: Any) -> str | tuple[dict[str, Any], ...]:
    """A string unchanged, or messages normalized by `macllm.text.messages`.

    Raises UsageError for other types, and for an invalid message, with its position.
    """
    if isinstance(prompt, str):
        return prompt
    if prompt is None or isinstance(prompt, int | float) or hasattr(prompt, "encode") or isinstance(prompt, Described):
        raise UsageError(f"The prompt is {kind_of(prompt)}, neither a string nor messages.", remedy=_CALL)
    if isinstance(prompt, list | tuple) and prompt and all(isinstance(each, int) for each in prompt):
        raise UsageError("The prompt is a list of tokens.", remedy="put them into a request: Request(prompt=(...))")
    return tuple(read_messages(prompt))


def encode_prompt(tokenizer: Tokenizer, request: Request, kind: ModelKind = "decoder") -> tuple[int, ...]:
    """The tokens of a request's prompt, text or messages, for a model of `kind`.

    A decoder continues a text, so that an end token that the tokenizer adds is left out. `answer_start` is not among
    the tokens. Raises UsageError for a request with both, for tools or an `answer_start` without
    a chat template and for invalid messages;
    TemplateError if the template rejects the messages.
    """
    _check_variables(request.variables)
    if request.messages and request.prompt:
        raise UsageError("a request has a prompt and messages", remedy="leave one of the two out")
    if request.messages and request.raw:
        raise UsageError("raw=True needs a text, not messages", remedy="send a text, or leave raw out")
    if not continues(tokenizer, request):
        messages: tuple[Mapping[str, Any], ...] = request.messages or ({"role": "user", "content": request.prompt},)
        return tuple(tokenizer.encode_chat(messages, tools=request.tools or None, **request.variables))
    if request.answer_start:
        raise UsageError(
            "answer_start continues an answer, and this prompt is not answered but continued",
            remedy="append its tokens to the prompt",
        )
    if request.tools or request.variables:
        raise UsageError(
            "tools and variables need a chat template, which this prompt does not use", remedy="send messages"
        )
    if isinstance(request.prompt, str):
        if not request.prompt:
            return ()
        if kind == "decoder":
            return tuple(encode_unended(tokenizer, request.prompt))
        return tuple(tokenizer.encode(request.prompt))
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
            raise UsageError(f"variables has {name!r}, which is not a variable of a chat template", remedy=remedy)


def continues(tokenizer: Tokenizer, request: Request) -> bool:
    """True if the completion continues the prompt as plain text, without a chat template."""
    if request.messages:
        return False
    answered = isinstance(request.prompt, str) and request.prompt and not request.raw
    return not answered or tokenizer.chat_template is None

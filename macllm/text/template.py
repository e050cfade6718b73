"""Chat templates (Jinja): rendering of a conversation to a model's prompt text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macllm.errors import DoesNotFitError, UsageError
from macllm.files import wrong_content

from .json_data import is_list, is_object, list_in, read_json
from .messages import plain, read_messages, read_tools

if TYPE_CHECKING:
    from jinja2 import Template

    from .limits import Budget
    from .sandbox import SandboxEnvironment

MAX_SOURCE = 98_304  # characters; twice the longest template of a known model


class TemplateError(UsageError):
    """A chat template that is invalid, exceeded a limit, or rejects the conversation; `cause` says why."""


class ChatTemplate:
    """One or several named Jinja templates, with the named tokens available to them.

    Rendering is limited to 1 s of processor time, 8 million characters, and the attributes and calls that the sandbox
    allows. Safe to share between threads.
    """

    def __init__(self, sources: str | Mapping[str, str], tokens: Mapping[str, str] | None = None) -> None:
        self.sources = {"default": sources} if isinstance(sources, str) else dict(sources)
        self._tokens = dict(tokens or {})
        self._compiled: dict[str, Template] = {}
        self._asks_for_null: dict[str, bool] = {}

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any], tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The templates of a model folder, None if it has none.

        Order of precedence: chat_template.jinja with additional_chat_templates/*.jinja, tokenizer_config.json,
        chat_template.json.
        """
        sources: dict[str, str] = {}
        if (folder / "chat_template.jinja").is_file():
            sources["default"] = _read(folder / "chat_template.jinja")
        for path in sorted((folder / "additional_chat_templates").glob("[!.]*.jinja")):
            sources[path.stem] = _read(path)
        if not sources:
            sources = _declared(config.get("chat_template"))
        if not sources:
            sources = _declared(read_json(folder / "chat_template.json").get("chat_template"))
        return cls(sources, tokens) if sources else None

    @property
    def source(self) -> str:
        """The source of the default template."""
        return self.sources.get("default") or next(iter(self.sources.values()))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as text. `template` among the variables names one of several templates.

        A template that writes the date writes that of `now`, or of the clock. Raises `TemplateError`.
        """
        return self._render(messages, tools, add_generation_prompt, variables, now)[0]

    def render_with_spans(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        now: datetime | None = None,
        **variables: Any,
    ) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text, and the character spans of the assistant's text (`{% generation %}`).

        Without spans if the template does not mark them (`marks_generation`).
        """
        text, budget = self._render(messages, tools, add_generation_prompt, variables, now)
        _check_spans(budget, text)
        return text, budget.spans

    def render_with_authors(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        now: datetime | None = None,
        **variables: Any,
    ) -> tuple[str, list[tuple[int, int]], list[int | None]]:
        """The text and spans of `render_with_spans`, and the message of each span.

        Messages are counted without system and developer messages. None: the template does not tell.
        """
        text, budget = self._render(messages, tools, False, variables, now)
        _check_spans(budget, text)
        return text, budget.spans, budget.authors

    @cached_property
    def heading(self) -> str:
        """The text between a user message and the answer; empty if rendering fails."""
        message = "user's words"
        try:
            return self.render([{"role": "user", "content": message}]).rpartition(message)[2]
        except TemplateError:
            return ""

    def marks_generation(self, tools: Sequence[Any] | None = None) -> bool:
        """True if the template that `tools` are used with has `{% generation %}` blocks."""
        return re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", self.sources[self._choose(None, tools)]) is not None

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: dict[str, Any],
        now: datetime | None,
    ) -> tuple[str, Budget]:
        from .forms import write_conversation
        from .instructions import INSTRUCTIONS, write_all
        from .limits import Budget, Limits, spending
        from .roles import with_known_roles

        conversation, tools = read_messages(messages), read_tools(tools)
        name = self._choose(variables.pop("template", None), tools)
        conversation = with_known_roles(conversation, self.sources[name])
        data = {
            **self._tokens,
            **{key: plain(value) for key, value in variables.items()},
            "messages": conversation,
            "tools": tools,
            "documents": plain(variables.get("documents")),
            "add_generation_prompt": add_generation_prompt,
        }
        budget = Budget(Limits(), _checked_length(data), now)

        def write(messages: list[dict[str, Any]]) -> str:
            budget.begin([each for each in messages if each["role"] not in INSTRUCTIONS])
            chunks: list[str] = []
            with _explained():
                for chunk in template.generate({**data, "messages": messages}):
                    budget.write(chunk)
                    chunks.append(chunk)
            return "".join(chunks)

        with spending(budget):
            template = self._template(name)
            text = write_all(
                conversation, lambda form: write_conversation(form, write, lambda: self._tests_for_null(name))
            )
        return text, budget

    def _template(self, name: str) -> Template:
        if name not in self._compiled:
            with _explained():
                self._compiled[name] = _environment(self.sources[name]).from_string(self.sources[name])
        return self._compiled[name]

    def _tests_for_null(self, name: str) -> bool:
        from .forms import asks_for_null

        if name not in self._asks_for_null:
            with _explained():
                parsed = _environment(self.sources[name]).parse(self.sources[name])
                self._asks_for_null[name] = asks_for_null(parsed)
        return self._asks_for_null[name]

    def _choose(self, name: str | None, tools: object) -> str:
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in self.sources else "default"
            if name not in self.sources and len(self.sources) == 1:
                name = next(iter(self.sources))
        if name not in self.sources:
            raise TemplateError(
                f"The model has no chat template named {name!r}.",
                cause=f"it has {', '.join(sorted(self.sources))}",
                remedy="name one of them: template=...",
            )
        return name


def _read(path: Path) -> str:
    if path.stat().st_size > 4 * MAX_SOURCE:
        raise _too_long()
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(f"{path} is not UTF-8 text.", cause=str(error), remedy=_OTHER) from error
    instead = wrong_content(path, may_be_text=True)
    if instead is not None:
        raise TemplateError(f"{path} is not a chat template.", cause=instead[0], remedy=instead[1])
    return source


_OTHER = "use another model, or fix its chat_template.jinja"


def _too_long() -> TemplateError:
    return TemplateError(
        "The model's chat template is too long.", cause=f"the limit is {MAX_SOURCE:,} characters", remedy=_OTHER
    )


def _declared(value: Any) -> dict[str, str]:
    """The templates in JSON: a string, a list of {"name", "template"}, or an object name -> template."""
    if isinstance(value, str):
        return {"default": value} if value else {}
    if is_object(value):
        return {name: text for name, text in value.items() if isinstance(text, str)}
    entries = [entry for entry in list_in(value) if is_object(entry)]
    return {str(e["name"]): e["template"] for e in entries if isinstance(e.get("template"), str) and "name" in e}


def _environment(source: str) -> SandboxEnvironment:
    """An environment for a template. Raises `TemplateError` for a too long source."""
    from .sandbox import SandboxEnvironment

    if len(source) > MAX_SOURCE:
        raise _too_long()
    return SandboxEnvironment()


class _explained:  # noqa: N801
    """Context that converts exceptions of a template to `TemplateError`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, TemplateError):
            raise _explain(error) from error


def _check_spans(budget: Budget, text: str) -> None:
    with _explained():
        budget.check_spans(text)


def _explain(error: Exception) -> TemplateError:
    from jinja2.exceptions import SecurityError, TemplateSyntaxError

    from .limits import LimitError
    from .sandbox import RefusalError

    cause = str(error)
    if isinstance(error, RefusalError):
        return TemplateError(
            "The model's chat template rejects this conversation.",
            cause=cause,
            remedy="change the conversation as the cause says, or use another model",
        )
    if isinstance(error, LimitError | RecursionError | MemoryError):
        return TemplateError(
            "The model's chat template was stopped.", cause=cause or type(error).__name__, remedy=_OTHER
        )
    if isinstance(error, SecurityError):
        return TemplateError("The model's chat template tried a forbidden operation.", cause=cause, remedy=_OTHER)
    if isinstance(error, TemplateSyntaxError):
        cause = f"line {error.lineno}: {error.message}"
        return TemplateError("The model's chat template is not valid Jinja.", cause=cause, remedy=_OTHER)
    return TemplateError("The model's chat template failed.", cause=cause or type(error).__name__, remedy=_OTHER)


def _checked_length(data: Any) -> int:
    """Number of characters in a template's input. Raises DoesNotFitError for more than MAX_TEXT."""
    from .limits import MAX_TEXT

    chars = _chars(data)
    if chars > MAX_TEXT:
        raise DoesNotFitError(
            f"the conversation has {chars:,} characters; the limit is {MAX_TEXT:,}",
            remedy="a shorter message, or its parts one at a time",
        )
    return chars


def _chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if is_object(value):
        return sum(_chars(item) for item in value.values())
    return sum(_chars(item) for item in value) if is_list(value) else 0

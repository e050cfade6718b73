"""Exports of a conversation: JSON, Markdown, or a web page."""

from __future__ import annotations

from pathlib import Path

from macllm.errors import UsageError

from .archive import as_text
from .conversation import Conversation
from .options import short_name
from .page import as_html
from .transcript import as_markdown

FORMATS = ("md", "json", "html")
_OTHERS = {"csv", "doc", "docx", "epub", "jsonl", "odt", "org", "pdf", "rst", "rtf", "tex", "xml", "yaml", "yml"}


def export(conversation: Conversation, form: str) -> str:
    """The text of an export: the whole tree as JSON, or the current path as Markdown or HTML.

    Raises: UsageError for another format.
    """
    name = model_name(conversation)
    match form:
        case "json":
            return as_text(conversation)
        case "md":
            return as_markdown(conversation.turns, model_name=name, system=conversation.system)
        case "html":
            return as_html(conversation, model_name=name)
    raise UsageError(f"There is no export format {form!r}.", remedy=f"one of {', '.join(FORMATS)}")


def format_of(path: Path) -> str:
    """The format that a file's name asks for, by default Markdown.

    Raises: UsageError for the name of a format that is none of ours.
    """
    ending = path.suffix.lower().removeprefix(".")
    if ending in _OTHERS:
        raise UsageError(f"There is no export as {ending}.", remedy=f"a name that ends with .{', .'.join(FORMATS)}")
    return {"htm": "html"}.get(ending, ending) if ending in (*FORMATS, "htm") else "md"


def model_name(conversation: Conversation) -> str:
    """The short name of the model that made the newest answer of the path."""
    origins = (turn.origin for turn in reversed(conversation.turns) if turn.origin)
    origin = next(origins, None)
    return short_name(origin.model) if origin else "the model"

"""Streaming split of an answer into content, reasoning and tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .channels import ChannelSplitter
from .formats.call import Tools
from .formats.choice import Formats, choose
from .formats.shape import Literals
from .output import Kind, Part
from .tags import TagSplitter
from .template import ChatTemplate

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

__all__ = ["Kind", "Part", "Splitter", "TagSplitter", "part_splitter", "splitter_for"]

_PROMPT_TOKENS = 4096  # tokens at the end of a prompt that are searched for an open part

Splitter = TagSplitter | ChannelSplitter


def splitter_for(
    template: ChatTemplate | str | None, *, tools: Tools = None, prompt: str = "", tokenizer: Tokenizer | None = None
) -> Splitter:
    """The splitter for the formats of a chat template.

    `prompt` is the end of the rendered conversation: the answer continues a part that it leaves open. The formats are
    chosen by their tags in the template and among the tokens of `tokenizer`.
    """
    formats = _formats(template, tokenizer)
    splitter = ChannelSplitter(formats.channels) if formats.channels else TagSplitter(formats, tools)
    splitter.open_by(prompt)
    return splitter


def part_splitter(tokenizer: Tokenizer, prompt: Sequence[int], tools: Tools = None) -> Splitter:
    """The splitter for the answer to a prompt of tokens, in a request with these tools."""
    template = tokenizer.chat_template
    formats = _formats(template, tokenizer)
    start, tags = len(prompt), "\n".join(formats.tags)
    while start > max(0, len(prompt) - _PROMPT_TOKENS):
        token = prompt[start - 1]
        if token in tokenizer.special_ids and (tokenizer.id_to_token(token) or "") not in tags:
            break  # the turn begins here
        start -= 1
    tail = tokenizer.decode(prompt[start:])
    heading = Literals(formats.tags).before(template.heading) if isinstance(template, ChatTemplate) else ""
    if heading.strip():  # tags in the user's text do not open a part
        tail = tail[max(0, tail.rfind(heading)) :]
    return splitter_for(template, tools=tools, prompt=tail, tokenizer=tokenizer)


def _formats(template: ChatTemplate | str | None, tokenizer: Tokenizer | None) -> Formats:
    source = template if isinstance(template, str) else "\n".join(template.sources.values()) if template else ""
    return choose(
        source, (lambda token: tokenizer.token_to_id(token) is not None) if tokenizer else lambda token: False
    )

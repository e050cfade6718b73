"""What a model writes, split while it streams: answer, reasoning, tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .template import ChatTemplate

Kind = Literal["content", "reasoning", "tool_call"]
Part = tuple[Kind, str]


@dataclass(frozen=True)
class Section:
    """A part between two tags. Without a closing tag it goes on until the text ends."""

    kind: Kind
    opening: str
    closing: str | None


_REASONING = (
    Section("reasoning", "<think>", "</think>"),
    Section("reasoning", "<thinking>", "</thinking>"),
    Section("reasoning", "<thought>", "</thought>"),
    Section("reasoning", "<reasoning>", "</reasoning>"),
    Section("reasoning", "[THINK]", "[/THINK]"),
    Section("reasoning", "<seed:think>", "</seed:think>"),
    Section("reasoning", "<|START_THINKING|>", "<|END_THINKING|>"),
    Section("reasoning", "<|begin_of_thought|>", "<|end_of_thought|>"),
    Section("reasoning", "<|channel|>analysis<|message|>", "<|end|>"),
)
_TOOL_CALLS = (
    Section("tool_call", "<tool_call>", "</tool_call>"),
    Section("tool_call", "<|tool_call|>", "<|/tool_call|>"),
    Section("tool_call", "<|tool_call_start|>", "<|tool_call_end|>"),
    Section("tool_call", "<function_call>", "</function_call>"),
    Section("tool_call", "[TOOL_CALLS]", None),
    Section("tool_call", "<|python_tag|>", None),
)
# Llama 3 writes a call as a bare JSON object, the whole of its answer.
_BARE_JSON = '{"name":"'


class PartSplitter:
    """Cuts streamed text into ("content" | "reasoning" | "tool_call", text), tags left out.

    A tag may come in any pieces: text that could be the beginning of one is held back until it is certain. White
    space next to a tag belongs to the tag. A section that is never closed lasts until the end. A line break stands
    between two calls.
    """

    def __init__(
        self, sections: tuple[Section, ...] = (), *, within: Section | None = None, bare_json: bool = False
    ) -> None:
        self._sections = sections
        self._section = within
        self._bare_json = bare_json and within is None
        self._held = ""
        self._after_tag = within is not None
        self._calls = 0

    @classmethod
    def for_template(cls, template: ChatTemplate | str | None, *, prompt: str = "") -> PartSplitter:
        """The splitter for a model that was trained on a template: it looks for the tags that are in it.

        `prompt` is the rendered conversation; where it ends inside an opened section (`…<think>\\n`), the
        answer begins there.
        """
        source = (
            template if isinstance(template, str) else "" if template is None else "\n".join(template.sources.values())
        )
        sections = tuple(section for section in (*_REASONING, *_TOOL_CALLS) if section.opening in source)
        # A template that drops old reasoning may name only the closing tag.
        named = {section.opening for section in sections}
        sections += tuple(s for s in _REASONING if s.closing and s.closing in source and s.opening not in named)
        tail = prompt.rstrip()
        within = next((section for section in sections if tail and tail.endswith(section.opening)), None)
        bare_json = "ipython" in source and '"parameters"' in source
        return cls(sections, within=within, bare_json=bare_json)

    def add(self, text: str) -> list[Part]:
        """The parts that `text` makes certain, neighbours of one kind as one."""
        self._held += text
        if self._bare_json and not self._settle_bare_json():
            return []
        parts: list[Part] = []
        while (found := self._next_tag()) is not None:
            at, tag, section = found
            self._emit(parts, self._held[:at].rstrip())
            self._held = self._held[at + len(tag) :]
            self._enter(parts, section)
        tags = self._tags()
        cut = len(self._held) - max((_overlap(self._held, tag) for tag, _ in tags), default=0)
        if tags:  # space before a tag goes with it, so it waits too
            cut = len(self._held[:cut].rstrip())
        ready, self._held = self._held[:cut], self._held[cut:]
        self._emit(parts, ready)
        return parts

    def finish(self) -> list[Part]:
        """What was held back."""
        text, self._held = self._held, ""
        parts: list[Part] = []
        self._emit(parts, text.rstrip() if self._section else text)
        return parts

    def _settle_bare_json(self) -> bool:
        """Whether it is certain what the answer begins with: a call in bare JSON, or anything else."""
        begun = "".join(self._held.split())
        if len(begun) < len(_BARE_JSON) and _BARE_JSON.startswith(begun):
            return False
        self._bare_json = False
        if begun.startswith(_BARE_JSON):
            self._enter([], Section("tool_call", "", None))
        return True

    def _tags(self) -> list[tuple[str, Section | None]]:
        """The tags that count now, each with the section it leads into."""
        if self._section is None:
            return [(section.opening, section) for section in self._sections]
        return [(self._section.closing, None)] if self._section.closing else []

    def _next_tag(self) -> tuple[int, str, Section | None] | None:
        found = [(at, tag, section) for tag, section in self._tags() if (at := self._held.find(tag)) >= 0]
        return min(found, key=lambda item: (item[0], -len(item[1])), default=None)

    def _enter(self, parts: list[Part], section: Section | None) -> None:
        self._section, self._after_tag = section, True
        if section is not None and section.kind == "tool_call":
            self._calls += 1
            if self._calls > 1:
                parts.append(("tool_call", "\n"))

    def _emit(self, parts: list[Part], text: str) -> None:
        if self._after_tag:
            text = text.lstrip()
        if not text:
            return
        self._after_tag = False
        kind: Kind = self._section.kind if self._section else "content"
        if parts and parts[-1][0] == kind:
            text = parts.pop()[1] + text
        parts.append((kind, text))


def _overlap(text: str, tag: str) -> int:
    """How many last characters of `text` could begin `tag`."""
    for size in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0

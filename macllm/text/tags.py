"""Streaming splitter for answers with parts between tags."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .formats.bare import Verdict, is_call, judge_json, judge_python
from .formats.call import Element, Scan, Tools
from .formats.choice import Formats
from .formats.shape import SPACE, Literals, Shape
from .formats.table import JSON, PYTHON, Section, Thinking, Wrapper
from .formats.typed import names_of
from .output import CodeSpans, Cutter, Part

_SPACES = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s,;]*")
_BETWEEN_LISTED = re.compile(r"[\s,;\]]*")
_LIST_BEGIN = re.compile(r"\[?\s*")
_LIST_END = re.compile(r"[\s\]]*")
_SEPARATOR = re.compile(r"(?:[;,]\s*)?")


@dataclass(frozen=True)
class _Opening:
    """A possible opening tag: `shape` must match for it to count; `tag` is left out of the part."""

    shape: Shape
    tag: Shape
    leads_to: Thinking | Wrapper | Section
    element: Element | None = None

    @property
    def begins_answers(self) -> bool:
        """True if the tag counts only at the beginning of an answer."""
        return isinstance(self.leads_to, Wrapper) or (
            isinstance(self.leads_to, Thinking) and not self.leads_to.anywhere
        )


class TagSplitter(Cutter):
    """Splits streamed text into parts at the tags of a model's formats; tags are left out.

    A tag counts only with its part: a call must follow a call tag, and reasoning precedes the answer. Any other tag is
    text, as is a tag within code. Text that could become a tag is held back until the next characters decide. An
    unclosed part lasts until the end. The parts do not depend on how the text is divided into pieces; the time is
    linear in its length.
    """

    def __init__(self, formats: Formats, tools: Tools = None) -> None:
        super().__init__(self._content)
        self._names = names_of(tools)
        self._bare = tuple(each for each in formats.sections if each.bare) if self._names else ()
        self._openings: dict[str, list[_Opening]] = {}
        for each in (*formats.thinking, *formats.wrappers):
            tag = Shape(each.opening)
            self._openings.setdefault(each.opening, []).append(_Opening(tag, tag, each))
        for section in formats.sections:
            self._add_section(section)
        self._silent = formats.silent
        self._closings = {wrapper.closing for wrapper in formats.wrappers}
        later = {tag for tag, openings in self._openings.items() if not all(each.begins_answers for each in openings)}
        self._stray = {each.closing for each in formats.thinking}
        self._first = Literals((*self._openings, *self._silent, *self._closings, *self._stray))
        self._later = Literals((*later, *self._silent, *self._closings))
        self._plain = not self._first.all and not self._bare
        self._thinking = formats.thinking
        self._wrappers = formats.wrappers

        self._fresh = True  # no answer text yet
        self._wrapper = ""  # the tag that closes the answer
        self._code = CodeSpans()
        self._closing = Literals(())
        self._again = Shape(SPACE)  # the reasoning tag that the prompt opened
        self._before = ""  # the last character of reasoning
        self._calls = -1
        self._section: Section | None = None
        self._ends = Literals(())
        self._scan: Scan | None = None
        self._held: list[str] = []  # of an object that may be a call or text

    def _add_section(self, section: Section) -> None:
        for opening in section.openings:
            for element in section.elements:
                lead = (opening, SPACE, (*section.between, ""), SPACE, *element.lead)
                lead = lead if opening else element.lead
                first = opening or element.start[0]
                if isinstance(first, str):
                    found = _Opening(Shape(*lead, *element.start), Shape(*lead), section, element)
                    self._openings.setdefault(first, []).append(found)

    def open_by(self, prompt: str) -> None:
        """Continue in the state at the prompt's end: in reasoning, in a wrapper, or after a call's tag."""
        within = max(
            (
                (at, each)
                for each in self._thinking
                if (at := prompt.rfind(each.opening.rstrip())) >= 0 and prompt.find(each.closing, at) < 0
            ),
            key=lambda found: found[0],
            default=None,
        )
        if within is not None:
            self._enter_thinking(within[1])
            if not prompt[within[0] + len(within[1].opening.rstrip()) :].strip():
                self._again = Shape(SPACE, within[1].opening)
                self._state = self._reopening
            return
        end = prompt.rstrip()
        for wrapper in self._wrappers:
            if end.endswith(wrapper.opening):
                self._wrapper = wrapper.closing
                self._output.tag()
        for tag, openings in self._openings.items():
            if end.endswith(tag) and isinstance(openings[0].leads_to, Section):
                self._text = prompt[len(end) - len(tag) :]

    def add(self, text: str) -> list[Part]:
        """Parts that are certain after `text`; all of it for a model without tags."""
        if self._plain:
            return [Part("content", text)] if text else []
        return super().add(text)

    def _say(self, end: int) -> None:
        """Output the text up to `end` as content."""
        text = self._text[self._at : end]
        self._at = end
        self._code.feed(text)
        self._output.text("content", text)
        if self._fresh and text.strip():
            self._fresh = False

    def _content(self, final: bool) -> bool:
        if self._fresh and self._bare:
            begun = self._begin_bare(final)
            if begun is not None:
                return begun
        literals = self._first if self._fresh else self._later
        found = literals.search(self._text, self._at)
        if found is None:
            self._say(len(self._text) if final else literals.tail(self._text, self._at))
            return False
        self._say(found.start())
        tag = found.group()
        # a model may close reasoning that it never opened
        stray = tag in self._stray and self._fresh and not self._code.open
        if stray or tag == self._wrapper or tag in self._silent:
            self._wrapper = "" if tag == self._wrapper else self._wrapper
            self._at = found.end()
            self._output.tag()
            return True
        for opening in self._openings.get(tag, ()):
            if opening.begins_answers and not self._fresh:
                continue
            if self._code.open:
                continue
            end = opening.shape.end(self._text, self._at)
            if end is not None and not self._is_mention(opening, end):
                self._enter(opening)
                return True
            if end is None and not final and opening.shape.may_begin(self._text, self._at):
                return False
        self._say(self._at + 1)
        return True

    def _is_mention(self, opening: _Opening, end: int) -> bool:
        """True for tags within a line around a word that is not a tool's name: the answer mentions the tags."""
        tags = opening.leads_to.closings if isinstance(opening.leads_to, Section) else ()
        start = opening.tag.end(self._text, self._at) or self._at
        words = (self._text[start : end - len(tag)] for tag in tags if self._text.endswith(tag, start, end))
        return bool(self._names) and self._code.within_line and any(word.strip() not in self._names for word in words)

    def _enter(self, opening: _Opening) -> None:
        self._at = opening.tag.end(self._text, self._at) or self._at
        self._output.tag()
        match opening.leads_to:
            case Thinking() as thinking:
                self._enter_thinking(thinking)
            case Wrapper(closing=closing):
                self._wrapper = closing
            case Section() as section:
                assert opening.element is not None
                self._enter_section(section)
                self._begin(opening.element)

    def _enter_thinking(self, thinking: Thinking) -> None:
        self._closing = Literals((thinking.closing,))
        self._before = ""
        self._state = self._reasoning
        self._output.tag()

    def _reopening(self, final: bool) -> bool:
        """State: skip the reasoning tag if the model repeats it after the prompt."""
        end = self._again.end(self._text, self._at)
        if end is None and not final and self._again.may_begin(self._text, self._at):
            return False
        self._at = end or self._at
        self._state = self._reasoning
        return True

    def _reasoning(self, final: bool) -> bool:
        text = self._text
        found = self._closing.search(text, self._at)
        if found is None:
            self._think(len(text) if final else self._closing.tail(text, self._at))
            return False
        self._think(found.start())
        if self._before == "`":  # a tag between backticks is a mention
            if found.end() == len(text) and not final:
                return False
            if text.startswith("`", found.end()):
                self._think(found.end())
                return True
        self._at = found.end()
        self._output.tag()
        self._state = self._content
        return True

    def _think(self, end: int) -> None:
        self._output.text("reasoning", self._text[self._at : end])
        self._before = self._text[end - 1] if end > self._at else self._before
        self._at = end

    def _enter_section(self, section: Section) -> None:
        self._section = section
        self._ends = Literals((*section.closings, *section.between))

    def _begin(self, element: Element) -> None:
        """Enter the state of reading a call."""
        section = self._section
        assert section is not None
        stops = [*section.closings, *section.openings, *(tag for tag in section.between if tag.startswith("<"))]
        self._scan = Scan(element, tuple(filter(None, stops)))
        self._calls += 1
        self._output.tag()
        self._state = self._call

    def _call(self, final: bool) -> bool:
        assert self._scan is not None
        end, ended = self._scan.read(self._text, self._at, final)
        self._output.text("tool_call", self._text[self._at : end], self._calls)
        self._at = end
        if ended:
            self._output.tag()
            self._state = self._between
        return ended

    def _between(self, final: bool) -> bool:
        """State: after a call, find the next call of the section or its end."""
        section, text = self._section, self._text
        assert section is not None
        if section.bare:
            return self._between_bare(section, final)
        listed = any(element.lead for element in section.elements)
        self._at = _past(_BETWEEN_LISTED if listed else _BETWEEN, text, self._at)
        if self._at == len(text):
            return False
        found = self._ends.match(text, self._at)
        if found:
            self._at = found.end()
            if found.group() in section.closings:
                self._state = self._content
            return True
        if not final and self._ends.may_begin(text, self._at):
            return False
        for element in section.elements:
            if element.shape.end(text, self._at) is not None:
                self._at = element.lead_shape.end(text, self._at) or self._at
                self._begin(element)
                return True
            if not final and element.shape.may_begin(text, self._at):
                return False
        self._state = self._content
        return True

    def _between_bare(self, section: Section, final: bool) -> bool:
        """State: after a call without tags, find the next one; other text continues the answer."""
        text = self._text
        self._at = _past(_LIST_END, text, self._at)
        next_at = _past(_SEPARATOR, text, self._at)
        if next_at == len(text) and not final:
            return False
        verdict = self._try_bare(section, next_at, final, in_list=True)
        if verdict is Verdict.MORE:
            return False
        if verdict is Verdict.TEXT:
            self._state = self._content
            return self._at < len(text)
        return True

    def _begin_bare(self, final: bool) -> bool | None:
        """Try a call without tags at the beginning of the answer; None without one."""
        first = _past(_SPACES, self._text, self._at)
        if first == len(self._text) or self._text[first] not in "{[":
            return None
        for section in self._bare:
            verdict = self._try_bare(section, first, final, in_list=False)
            if verdict is not Verdict.TEXT:
                return verdict is not Verdict.MORE
        return None

    def _try_bare(self, section: Section, at: int, final: bool, *, in_list: bool) -> Verdict:
        """Begin the call without tags at `at`, if any, and return the verdict."""
        text = self._text
        start = _past(_LIST_BEGIN, text, at)
        if start == len(text):
            return Verdict.TEXT if final else Verdict.MORE
        if JSON in section.elements and text[start] == "{":
            element, verdict = JSON, judge_json(text, start, self._names)
        elif PYTHON in section.elements and (in_list or start > at):
            element, verdict = PYTHON, judge_python(text, start, self._names)
        else:
            return Verdict.TEXT
        if verdict is Verdict.MORE and final:
            return Verdict.TEXT
        if verdict is Verdict.CALL:
            self._enter_section(section)
            self._at = start
            self._begin(element)
        elif verdict is Verdict.WHOLE:
            self._enter_section(section)
            self._scan = Scan(element)
            self._state = self._undecided
        return verdict

    def _undecided(self, final: bool) -> bool:
        """State: hold back a JSON object until its end decides between call and text."""
        assert self._scan is not None
        end, ended = self._scan.read(self._text, self._at, final)
        self._held.append(self._text[self._at : end])
        self._at = end
        if not ended and not final:
            return False
        whole = "".join(self._held)
        self._held.clear()
        call = whole[max(0, whole.find("{")) :]
        if is_call(call, self._names):
            self._calls += 1
            self._output.tag()
            self._output.text("tool_call", call, self._calls)
            self._output.tag()
            self._state = self._between
        else:
            self._code.feed(whole)
            self._output.text("content", whole)
            self._fresh = False
            self._state = self._content
        return True


def _past(pattern: re.Pattern[str], text: str, at: int) -> int:
    """The end of the match of `pattern` at `at`; `at` without a match."""
    match = pattern.match(text, at)
    return match.end() if match else at

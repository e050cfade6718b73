"""Rules of markdown-it for formulas.

They take `\\( \\)`, `\\[ \\]`, `$ $` and `$$ $$` before Markdown's escapes. An unfinished formula stays as it is.
Amounts of money, shell variables and escaped brackets are no formulas.
"""

from __future__ import annotations

import re
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

from .latex import to_unicode

_CLOSING = {"\\(": "\\)", "\\[": "\\]", "$$": "$$", "$": "$"}
_LONGEST = 2000  # characters; a formula is shorter
_COMMAND = re.compile(r"\\[A-Za-z]+\*?(\s*\{[^{}]*\})?")
_WORD = re.compile(r"[A-Za-z]{2,}[,.;:]?")
_OPERATOR = re.compile(r"[=+^_\\{}<>*/]")


def formulas(parser: MarkdownIt) -> None:
    """Add the rules: tokens formula_inline and formula_block, with the shown text as content."""
    parser.inline.ruler.before("escape", "formula", _inline)
    parser.block.ruler.before("fence", "formula", _block, {"alt": ["paragraph", "reference", "blockquote", "list"]})


def shown(opening: str, formula: str) -> str:
    """The formula as Unicode text, or as it is in the source."""
    text = to_unicode(formula)
    return f"{opening}{formula}{_CLOSING[opening]}" if text is None else text


def _inline(state: StateInline, silent: bool) -> bool:
    found = _formula_at(state.src[state.pos : state.pos + _LONGEST], state.src[state.pos - 1 : state.pos])
    if found is None:
        return False
    text, length = found
    if not silent:
        state.push("formula_inline", "", 0).content = text
    state.pos += length
    return True


def _formula_at(text: str, before: str) -> tuple[str, int] | None:
    """Shown text and length in the source of the formula that `text` begins with; None: there is none."""
    opening = text[:2] if text[:2] in _CLOSING else text[:1]
    if opening not in _CLOSING:
        return None
    end = _end(text, len(opening), _CLOSING[opening])
    formula = text[len(opening) : end]
    if end is None:
        return (text, len(text)) if opening[0] == "\\" and _is_unfinished(formula, opening) else None
    after = text[end + len(opening) :][:1]
    if not formula.strip() or "`" in formula or (opening != "$" and opening in formula) or _is_prose(formula):
        return None
    if opening == "$" and (before.isalnum() or after.isalnum() or formula != formula.strip()):
        return None
    return shown(opening, formula), end + len(opening)


def _end(text: str, start: int, closing: str) -> int | None:
    """Position of the first `closing` that no backslash escapes."""
    pattern = re.escape(closing) if closing[0] == "\\" else rf"(?<!\\){re.escape(closing)}"
    found = re.compile(pattern).search(text, start)
    return found.start() if found else None


def _is_prose(formula: str) -> bool:
    """True for two words, side by side or without any operator."""
    words = [bool(_WORD.fullmatch(each)) for each in _COMMAND.sub(" ", formula).split()]
    side_by_side = any(left and right for left, right in pairwise(words))
    return side_by_side or (sum(words) > 1 and not _OPERATOR.search(formula))


def _is_unfinished(formula: str, opening: str) -> bool:
    """True if text after an opening that is not closed reads as the beginning of a formula.

    A plain closing bracket without its opening one belongs to a bracket that a backslash escapes: \\[not a link].
    """
    left, right = ("(", ")") if opening == "\\(" else ("[", "]")
    if formula.count(right) > formula.count(left) or "`" in formula or len(formula) + 2 >= _LONGEST:
        return False
    return not _is_prose(formula)


def _block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A displayed formula, whose lines may begin like list items or underlines."""
    line = _line(state, start)
    opening = line[:2]
    if opening not in ("\\[", "$$") or state.is_code_block(start):
        return False
    lines: list[str] = []
    closing = re.compile(rf"(.*){re.escape(_CLOSING[opening])}([.,;:]?)\s*")
    for number in range(start, end):
        line = _line(state, number)[2 if number == start else 0 :]
        if (number > start and not line.strip()) or state.sCount[number] < state.blkIndent:
            return False
        if _CLOSING[opening] in line:
            found = closing.fullmatch(line)
            formula = "\n".join([*lines, found[1] if found else line])
            if found is None or not formula.strip() or "`" in formula or _is_prose(formula):
                return False
            return _add(state, (start, number + 1), shown(opening, formula) + found[2], silent)
        lines.append(line)
    return not lines[0].strip() and _add(state, (start, end), "\n".join([opening, *lines[1:]]), silent)


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _add(state: StateBlock, lines: tuple[int, int], text: str, silent: bool) -> bool:
    if not silent:
        state.line = lines[1]
        token = state.push("formula_block", "", 0)
        token.content, token.map = text, list(lines)
    return True

"""Splits streaming Markdown into finished blocks.

A finished block is drawn once; only the unfinished tail is drawn again as it grows, so a long list, table or
code block costs no more than a paragraph.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"( *)(`{3,}|~{3,})(.*)")
_ITEM = re.compile(r"( {0,3})([-*+]|\d{1,9}[.)])( +)\S")
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")


def _opened_formula(line: str) -> str:
    """The end of a displayed formula that begins in the line and goes on after it; "" if there is none."""
    opening = line.lstrip()[:2]
    closing = {"\\[": "\\]", "$$": "$$"}.get(opening, "")
    return closing if closing and closing not in line.lstrip()[2:] else ""


class BlockSplitter:
    """Splits at blank lines, after headings, around fences and before each new top-level list item.

    The blocks do not depend on how the text is cut into pieces; blocks plus tail are the text.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []  # complete lines of the open block
        self._partial = ""
        self._fence = ""  # the marker of the open fence; "" outside of one
        self._formula = ""  # the end of the open displayed formula; "" outside of one
        self._item_indent = 0  # column where the text of the open list item starts; 0: no list item

    @property
    def tail(self) -> str:
        """The text not in a finished block yet."""
        return "".join(self._lines) + self._partial

    def feed(self, text: str) -> list[str]:
        """Add a piece of text and return the blocks that it finishes."""
        blocks: list[str] = []
        *complete, self._partial = (self._partial + text).split("\n")
        for line in complete:
            self._take(line + "\n", blocks)
        return blocks

    def finish(self) -> list[str]:
        """Return the tail as the last block, if it is not empty, and reset."""
        tail = self.tail
        self._lines, self._partial, self._fence, self._formula, self._item_indent = [], "", "", "", 0
        return [tail] if tail else []

    def _take(self, line: str, blocks: list[str]) -> None:
        if self._fence:
            self._lines.append(line)
            if self._closes_fence(line):
                self._fence = ""
                if not self._item_indent:
                    self._cut(blocks)
            return
        if self._formula and line.strip():
            self._lines.append(line)
            self._formula = "" if self._formula in line else self._formula
            return
        self._formula = _opened_formula(line)
        if not line.strip():
            self._lines.append(line)
            # An indented line after a blank one continues the list item: wait for it.
            if not self._item_indent and not self._is_blank():
                self._cut(blocks)
            return
        if self._starts_block(line):
            self._cut(blocks)
        if self._is_blank() and (item := _ITEM.match(line)):
            self._item_indent = item.end() - 1
        self._lines.append(line)
        if fence := _FENCE.match(line):
            self._open_fence(fence)
        elif _HEADING.match(line) and not self._item_indent:
            self._cut(blocks)

    def _starts_block(self, line: str) -> bool:
        """True if a non-blank line begins a new block at the top level."""
        if self._is_blank():
            return False
        indent = len(line) - len(line.lstrip(" "))
        if self._item_indent:
            if indent >= self._item_indent:
                return False
            if not self._lines[-1].strip():
                return True
        if indent > 3:
            return False
        item = _ITEM.match(line)
        if item and (self._item_indent or not item[2][0].isdigit() or item[2] in ("1.", "1)")):
            return True
        return bool(_HEADING.match(line)) or bool(_FENCE.match(line))

    def _open_fence(self, fence: re.Match[str]) -> None:
        indent, marker, info = fence.groups()
        inside_item = bool(self._item_indent) and len(indent) >= self._item_indent
        if (len(indent) <= 3 or inside_item) and not (marker[0] == "`" and "`" in info):
            self._fence = marker

    def _closes_fence(self, line: str) -> bool:
        stripped = line.strip()
        return len(stripped) >= len(self._fence) and not stripped.strip(self._fence[0])

    def _is_blank(self) -> bool:
        return not any(line.strip() for line in self._lines)

    def _cut(self, blocks: list[str]) -> None:
        if self._lines:
            blocks.append("".join(self._lines))
        self._lines = []
        self._item_indent = 0

"""Markdown parsed into a flat list of parts, independent of width. No Textual in here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.token import Token

from .formulas import formulas

Mark = Literal["strong", "em", "s", "code", "link"]
BlockKind = Literal["text", "heading", "code", "table", "rule"]


@dataclass(frozen=True)
class TextRun:
    """Text with its inline marks. `href` is the target of a link."""

    text: str
    marks: frozenset[Mark] = frozenset()
    href: str = ""


TextRuns = tuple[TextRun, ...]


@dataclass
class MarkdownBlock:
    """One block. `first` and `rest` are the prefixes of its first and of its other lines.

    `above` is the prefix of the empty line above it, None without such a line. A code block has its code in
    one run and its language in `language`; a table has rows of cells, header first.
    """

    kind: BlockKind
    runs: TextRuns = ()
    first: str = ""
    rest: str = ""
    above: str | None = None
    level: int = 0  # of a heading
    language: str = ""
    rows: list[list[TextRuns]] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)  # columns that are aligned to the right
    in_list: bool = False
    growing: bool = False  # still being written


def parse(source: str) -> list[MarkdownBlock]:
    """Parse a document into its parts, in order."""
    walk = _Walk()
    for token in _PARSER.parse(source):
        walk.take(token)
    return walk.parts


def parse_growing(source: str) -> list[MarkdownBlock]:
    """The parts of a document that is still being written.

    A long table is parsed in pieces, of which only one is new. They may differ from the whole in rare cases, until that
    is parsed at the end.
    """
    found = _growing_table(source) or parse(source)
    if found:
        found[-1].growing = True
    return found


_PIECE = 16  # rows
_RULE_OF_TABLE = re.compile(r" {0,3}\|?[ :|-]*-[ :|-]*")


def _growing_table(source: str) -> list[MarkdownBlock] | None:
    """A table without other parts, of more than two pieces; None for any other source."""
    lines = source.split("\n")
    if len(lines) < 2 + 2 * _PIECE or not _RULE_OF_TABLE.fullmatch(lines[1]) or "" in lines[:-1]:
        return None
    head = "\n".join(lines[:2]) + "\n"
    whole: MarkdownBlock | None = None
    for at in range(2, len(lines), _PIECE):
        rows = lines[at : at + _PIECE]
        part = _table_piece(head + "\n".join(rows)) if len(rows) == _PIECE else _only_table(head + "\n".join(rows))
        if part is None:
            return None
        if whole is None:
            whole = replace(part, rows=list(part.rows))
        else:
            whole.rows += part.rows[1:]
    return [whole] if whole else None


def _only_table(source: str) -> MarkdownBlock | None:
    parts = parse(source)
    return parts[0] if len(parts) == 1 and parts[0].kind == "table" else None


@lru_cache(maxsize=128)
def _table_piece(source: str) -> MarkdownBlock | None:
    return _only_table(source)


def code_blocks(source: str) -> list[str]:
    """The code blocks of a document, each with a final newline."""
    return [part.runs[0].text + "\n" for part in parse(source) if part.kind == "code"]


_PARSER = MarkdownIt("gfm-like").use(formulas)
_BULLETS = ("• ", "◦ ", "▪ ")


@dataclass
class _Container:
    """A list item or a quote, with the prefixes it adds to the lines inside it."""

    first: str
    rest: str
    used: bool = False


class _Walk:
    """Converts the parser's tokens into parts."""

    def __init__(self) -> None:
        self.parts: list[MarkdownBlock] = []
        self._containers: list[_Container] = []
        self._lists: list[int | None] = []  # next number of each open list; None: bullets
        self._list_begins = False
        self._hidden = False  # inside a paragraph of a tight list
        self._heading = 0
        self._rows: list[list[TextRuns]] = []
        self._right: list[bool] = []

    def take(self, token: Token) -> None:
        """Process the next token."""
        match token.type:
            case "paragraph_open":
                self._hidden = token.hidden
            case "heading_open":
                self._hidden, self._heading = False, int(token.tag[1:])
            case "heading_close":
                self._heading = 0
            case "hr" | "fence" | "code_block" | "html_block":
                self._hidden = False
                self._add(_leaf(token))
            case "formula_block":
                self._hidden = False
                self._containers.append(_Container("  ", "  "))
                self._add(MarkdownBlock("text", (TextRun(token.content),)))
                self._containers.pop()
            case "inline" if self._rows:
                self._rows[-1].append(_runs(token.children or []))
            case "inline":
                kind: BlockKind = "heading" if self._heading else "text"
                self._add(MarkdownBlock(kind, _runs(token.children or []), level=self._heading))
            case "tr_open" | "th_open" | "table_close":
                self._take_table(token)
            case _:
                self._take_container(token)

    def _take_container(self, token: Token) -> None:
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                self._list_begins = self._list_begins or not self._lists
                self._lists.append(int(token.attrs.get("start", 1)) if token.type[0] == "o" else None)
            case "bullet_list_close" | "ordered_list_close":
                self._lists.pop()
            case "list_item_open":
                self._containers.append(self._item())
            case "blockquote_open":
                self._containers.append(_Container("▌ ", "▌ "))
            case "list_item_close" | "blockquote_close":
                if not self._containers[-1].used:  # an empty item still has its bullet
                    self._hidden = bool(self._lists)
                    self._add(MarkdownBlock("text"))
                self._containers.pop()

    def _take_table(self, token: Token) -> None:
        match token.type:
            case "tr_open":
                self._rows.append([])
            case "th_open":
                self._right.append("right" in str(token.attrs.get("style", "")))
            case "table_close":
                self._hidden = False
                self._add(MarkdownBlock("table", rows=self._rows, right=self._right))
                self._rows, self._right = [], []

    def _item(self) -> _Container:
        number = self._lists[-1]
        if number is None:
            bullet = _BULLETS[min(sum(each is None for each in self._lists), len(_BULLETS)) - 1]
        else:
            bullet = f"{number}. "
            self._lists[-1] = number + 1
        return _Container(bullet, " " * len(bullet))

    def _add(self, part: MarkdownBlock) -> None:
        tight = self._hidden and not self._list_begins
        if self.parts and not tight:
            part.above = "".join(each.rest for each in self._containers if each.used).rstrip()
        part.first = "".join(each.rest if each.used else each.first for each in self._containers)
        part.rest = "".join(each.rest for each in self._containers)
        part.in_list = bool(self._lists)
        for each in self._containers:
            each.used = True
        self._list_begins = False
        self.parts.append(part)


def _leaf(token: Token) -> MarkdownBlock:
    """The part of a leaf block: rule, code or HTML."""
    if token.type == "hr":
        return MarkdownBlock("rule")
    text = token.content.rstrip("\n")
    if token.type == "html_block":
        return MarkdownBlock("text", (TextRun(text),))
    return MarkdownBlock("code", (TextRun(text),), language=token.info.split()[0] if token.info.strip() else "")


def _runs(tokens: Iterable[Token]) -> TextRuns:
    """The runs of an inline token's children."""
    runs: list[TextRun] = []
    open_marks: list[Mark] = []
    href = ""
    for token in tokens:
        kind = token.type
        if kind == "link_open":
            href = str(token.attrs.get("href", ""))
        elif kind == "link_close":
            href = ""
        elif kind.endswith("_open") and kind[:-5] in ("strong", "em", "s"):
            open_marks.append(kind[:-5])  # type: ignore[arg-type]
        elif kind.endswith("_close") and kind[:-6] in open_marks:
            open_marks.remove(kind[:-6])  # type: ignore[arg-type]
        else:
            text = {"softbreak": " ", "hardbreak": "\n"}.get(kind, token.content)
            marks = {*open_marks, *(["code"] if kind == "code_inline" else []), *(["link"] if href else [])}
            runs.append(TextRun(text, frozenset(marks), href))  # type: ignore[arg-type]
    return tuple(runs)

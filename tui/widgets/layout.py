"""Layout of Markdown parts in lines of a given width."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import chain

from textual.content import Content
from textual.highlight import highlight
from textual.style import Style

from ..text.markdown import MarkdownBlock, TextRun, TextRuns

_NARROWEST = 8  # minimum cells of a part, however deeply nested
_PIECE = 32  # lines of growing code that are highlighted at once
_GAP = 2  # between the columns of a table
_STYLES = {"strong": "bold", "em": "italic", "s": "strike", "code": "on $tint", "link": "$accent underline"}


def numbered_lines(parts: Iterable[MarkdownBlock], width: int, codes: int = 0) -> list[Content]:
    """The lines of parts. Code blocks are numbered from `codes` + 1 on."""
    lines: list[Content] = []
    for part in parts:
        codes += part.kind == "code"
        lines += lines_of(part, width, codes)
    return lines


def lines_of(part: MarkdownBlock, width: int, number: int = 0) -> list[Content]:
    """The lines of a part, at most `width` cells wide, with the empty line above it if it has one.

    `number` is that of a code block, for the key that copies it.
    """
    room = max(width - len(part.rest), _NARROWEST)
    if part.kind == "rule":
        body = [Content.styled("─" * room, "$faint")]
    elif part.kind == "code":
        body = _code(part, room, number)
    elif part.kind == "table":
        body = _table(part, room)
    else:
        text = _content(part.runs)
        if part.kind == "heading":
            text = text.stylize_before("bold $accent" if part.level == 1 else "bold")
        body = text.wrap(room)
    above = [] if part.above is None else [_prefix(part.above)]
    first, rest = _prefix(part.first), _prefix(part.rest)
    return above + [(rest if number else first) + line for number, line in enumerate(body)]


def _prefix(text: str) -> Content:
    return Content.styled(text, "$faint" if "▌" in text else "$accent")


def _content(runs: TextRuns) -> Content:
    return Content("").join([_run(run) for run in runs])


def _run(run: TextRun) -> Content:
    content = Content.styled(run.text.expandtabs(4), " ".join(_STYLES[mark] for mark in sorted(run.marks)))
    if run.href.startswith(("https://", "http://")):  # other URL schemes in a model's text are unsafe
        content = content.stylize(Style.from_meta({"@click": f"link({run.href!r})"}))
    return content


def _code(part: MarkdownBlock, width: int, number: int) -> list[Content]:
    """Highlighted code on a background, below its language and number; long lines are wrapped."""
    inner = max(width - 4, 1)
    mark = str(number or "")
    language = Content(part.language).truncate(max(inner - len(mark) - 1, 1), ellipsis=True)
    title = language + " " * max(inner - language.cell_length - len(mark), 0) + mark
    text, lexer = part.runs[0].text, part.language or "text"
    lines = [_on_background(title.stylize("$muted"), width)]
    if part.growing:  # strings over several lines get their colours at the end
        source = text.rstrip().split("\n")
        last = len(source) // _PIECE * _PIECE
        for at in range(0, last, _PIECE):
            lines += _code_piece("\n".join(source[at : at + _PIECE]), lexer, width)
        lines += _code_lines("\n".join(source[last:]), lexer, width) if source[last:] else []
    else:
        lines += _code_lines(text.rstrip(), lexer, width)
    return [*lines, _on_background(Content(""), width)]


def _code_lines(text: str, lexer: str, width: int) -> list[Content]:
    inside = text.strip("\n")  # the highlighter takes blank lines away at both ends
    above = text.index(inside) if inside else 0
    code = [Content("")] * above + highlight(inside, language=lexer, tab_size=4).split("\n", allow_blank=True)
    code = (code + [Content("")] * text.count("\n"))[: text.count("\n") + 1]
    folded = (piece for line in code for piece in line.fold(max(width - 4, 1)))
    return [_on_background(line, width) for line in folded]


@lru_cache(maxsize=64)
def _code_piece(text: str, lexer: str, width: int) -> list[Content]:
    """The lines of code that is complete, while more is written below it."""
    return _code_lines(text, lexer, width)


def _on_background(line: Content, width: int) -> Content:
    padded = line.pad_left(2)
    return padded.pad_right(max(width - padded.cell_length, 0)).stylize_before("$foreground on $ground")


def _table(part: MarkdownBlock, width: int) -> list[Content]:
    """Columns separated by spaces; cells that are too wide are wrapped."""
    columns = max(len(row) for row in part.rows)
    rows = [(*row, *[()] * (columns - len(row))) for row in part.rows]
    widths = [max(_cell(row[column]).cell_length for row in rows) for column in range(columns)]
    room = max(width - _GAP * (columns - 1), columns)
    while sum(widths) > room:
        widest = widths.index(max(widths))
        second = max([*(each for each in widths if each < widths[widest]), 1])
        widths[widest] = max(second, widths[widest] - (sum(widths) - room), 1)
    right = tuple(column < len(part.right) and part.right[column] for column in range(columns))
    head, *body = (_row(row, tuple(widths), right) for row in rows)
    rule = Content.styled("─" * (sum(widths) + _GAP * (columns - 1)), "$faint")
    return [*(line.stylize_before("$muted") for line in head), rule, *chain.from_iterable(body)]


@lru_cache(maxsize=4096)
def _cell(runs: TextRuns) -> Content:
    return _content(runs)


@lru_cache(maxsize=2048)
def _row(row: tuple[TextRuns, ...], widths: tuple[int, ...], right: tuple[bool, ...]) -> list[Content]:
    """The lines of a row. Those of a growing table are laid out anew only if its widths change."""
    cells = [_cell(runs).wrap(max(size, 1)) for runs, size in zip(row, widths, strict=True)]
    lines: list[Content] = []
    for level in range(max(len(cell) for cell in cells)):
        pieces: list[Content] = []
        for cell, size, to_right in zip(cells, widths, right, strict=True):
            piece = cell[level] if level < len(cell) else Content("")
            space = max(size - piece.cell_length, 0)
            pieces.append(piece.pad_left(space) if to_right else piece.pad_right(space))
        lines.append(Content(" " * _GAP).join(pieces))
    return lines

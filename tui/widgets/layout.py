"""Layout of Markdown parts in lines of a given width."""

from __future__ import annotations

from collections.abc import Iterable

from textual.content import Content
from textual.highlight import highlight
from textual.style import Style

from ..text.markdown import MarkdownBlock, TextRun, TextRuns

_NARROWEST = 8  # minimum cells of a part, however deeply nested
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
    code = highlight(part.runs[0].text, language=part.language or "text", tab_size=4)
    inner = max(width - 4, 1)
    folded = [piece for line in code.rstrip().split("\n", allow_blank=True) for piece in line.fold(inner)]
    mark = str(number or "")
    language = Content(part.language).truncate(max(inner - len(mark) - 1, 1), ellipsis=True)
    title = language + " " * max(inner - language.cell_length - len(mark), 0) + mark
    lines = [title.stylize("$muted"), *folded, Content("")]
    return [_padded(line.pad_left(2), width).stylize_before("$foreground on $ground") for line in lines]


def _table(part: MarkdownBlock, width: int) -> list[Content]:
    """Columns separated by spaces; cells that are too wide are wrapped."""
    columns = max(len(row) for row in part.rows)
    rows = [[_content(cell) for cell in row] + [Content("")] * (columns - len(row)) for row in part.rows]
    widths = [max(row[column].cell_length for row in rows) for column in range(columns)]
    room = max(width - _GAP * (columns - 1), columns)
    while sum(widths) > room:
        widest = widths.index(max(widths))
        second = max([*(each for each in widths if each < widths[widest]), 1])
        widths[widest] = max(second, widths[widest] - (sum(widths) - room), 1)
    lines: list[Content] = []
    for number, row in enumerate(rows):
        cells = [cell.wrap(max(size, 1)) for cell, size in zip(row, widths, strict=True)]
        for level in range(max(len(cell) for cell in cells)):
            pieces: list[Content] = []
            for column, cell in enumerate(cells):
                piece = cell[level] if level < len(cell) else Content("")
                right = column < len(part.right) and part.right[column]
                space = max(widths[column] - piece.cell_length, 0)
                pieces.append(piece.pad_left(space) if right else piece.pad_right(space))
            line = Content(" " * _GAP).join(pieces)
            lines.append(line.stylize_before("$muted") if number == 0 else line)
        if number == 0:
            lines.append(Content.styled("─" * (sum(widths) + _GAP * (columns - 1)), "$faint"))
    return lines


def _padded(line: Content, width: int) -> Content:
    return line.pad_right(max(width - line.cell_length, 0))

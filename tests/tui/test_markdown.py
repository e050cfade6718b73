from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.content import Content

from macllm_tui.text import markdown
from macllm_tui.text.markdown import parse
from macllm_tui.widgets import layout
from macllm_tui.widgets.layout import lines_of, numbered_lines
from macllm_tui.widgets.stream_markdown import StreamMarkdown
from tests.tui.test_splitter import DOCUMENTS, NOISE


def drawn(source: str, width: int = 40) -> list[str]:
    return [line.plain.rstrip() for line in numbered_lines(parse(source), width)]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("one\ntwo", ["one two"]),
        ("one  \ntwo", ["one", "two"]),
        ("a\n\nb", ["a", "", "b"]),
        ("# T\ntext", ["T", "", "text"]),
        ("- a\n- b\n  - c\n    - d\n- e", ["• a", "• b", "  ◦ c", "    ▪ d", "• e"]),
        ("- a\n\n- b", ["• a", "", "• b"]),
        ("text\n- a\n- b", ["text", "", "• a", "• b"]),
        ("9. a\n10. b", ["9. a", "10. b"]),
        ("1. a\n1. b", ["1. a", "2. b"]),
        ("1. a\n\n   b\n\n2. c", ["1. a", "", "   b", "", "2. c"]),
        ("- \n- b", ["•", "• b"]),
        ("> a\n>\n> b", ["▌ a", "▌", "▌ b"]),
        ("> - a\n> - b", ["▌ • a", "▌ • b"]),
        ("- > a", ["• ▌ a"]),
        ("---", ["─" * 40]),
        ("**b** *i* ~~s~~ `c` [l](http://x) ![alt](y)", ["b i s c l alt"]),
        ("<b>x</b>", ["<b>x</b>"]),
        ("<div>\nx\n</div>", ["<div>", "x", "</div>"]),
        ("```py\nx = 1\n\ny\n```", ["  py" + "1".rjust(34), "  x = 1", "", "  y", ""]),
        ("- a\n  ```\n  x\n  ```", ["• a", "", "    " + "1".rjust(34), "    x", ""]),
        ("| a | bb |\n|---|---:|\n| ccc | 1 |", ["a    bb", "───────", "ccc   1"]),
        ("", []),
    ],
)
def test_a_document_is_drawn_as_lines(source: str, lines: list[str]) -> None:
    assert drawn(source) == lines


def test_wrapped_lines_of_lists_and_quotes_are_indented() -> None:
    assert drawn("- one two three four", 10) == ["• one two", "  three", "  four"]
    assert drawn("> one two three", 10) == ["▌ one two", "▌ three"]


def test_long_code_is_folded_and_never_cut() -> None:
    lines = drawn("```\n" + "x" * 50 + "\n```", 24)
    assert "".join(line.strip() for line in lines) == "1" + "x" * 50


def test_a_wide_table_is_wrapped_into_the_width() -> None:
    lines = drawn("| a | b |\n|---|---|\n| " + "long words " * 8 + " | short |", 30)
    assert max(map(len, lines)) <= 30
    assert " ".join(" ".join(lines).split()).count("long") == 8


@settings(max_examples=25, deadline=None)
@given(st.one_of(DOCUMENTS, NOISE), st.integers(10, 60))
def test_no_line_is_wider_than_the_screen_and_no_word_is_lost(source: str, width: int) -> None:
    lines = [line for line in numbered_lines(parse(source), width)]
    assert all(isinstance(line, Content) for line in lines)
    for block in parse(source):
        room = max(width, len(block.rest) + 8)
        assert all(line.cell_length <= room for line in lines_of(block, width))
        text = "".join("".join(line.plain.replace("▌", "").split()) for line in lines_of(block, width))
        for run in block.runs:
            if block.kind == "text":
                assert "".join(run.text.split())[:8] in text


@settings(max_examples=25, deadline=None)
@given(st.one_of(DOCUMENTS, NOISE), st.lists(st.integers(1, 9), max_size=20), st.integers(10, 60))
def test_a_streamed_document_is_drawn_like_the_whole_document(source: str, cuts: list[int], width: int) -> None:
    widget, position = StreamMarkdown(), 0
    for length in cuts:
        widget.write(source[position : position + length])
        widget.lines(width)
        position += length
    widget.write(source[position:])
    widget.finish()
    assert widget.source == source
    assert [line.plain for line in widget.lines(width)] == [line.plain for line in numbered_lines(parse(source), width)]


def test_a_tight_list_is_drawn_without_gaps_while_it_streams() -> None:
    widget = StreamMarkdown()
    for piece in ("Text:\n\n- a\n", "- b\n", "- c", "\n\nEnd"):
        widget.write(piece)
    assert [line.plain for line in widget.lines(40)] == ["Text:", "", "• a", "• b", "• c", "", "End"]


def test_a_dash_after_a_line_is_not_drawn_as_a_heading() -> None:
    widget = StreamMarkdown()
    widget.write("Three things:\n-")
    assert [line.plain for line in widget.lines(40)] == ["Three things:"]


def test_a_finished_block_is_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work per piece does not grow with the answer."""
    laid_out: list[str] = []

    def counted(block: object, width: int, number: int) -> list[Content]:
        laid_out.append(str(block))
        return [Content("x")]

    monkeypatch.setattr(layout, "lines_of", counted)
    widget = StreamMarkdown()
    for number in range(200):
        for piece in (f"- item {number}", " of many\n"):
            widget.write(piece)
            widget.lines(80)
    assert len(laid_out) <= 200 * 4


def test_a_new_width_lays_out_the_document_again() -> None:
    widget = StreamMarkdown()
    widget.write("one two three\n\nfour five six\n\n")
    assert len(widget.lines(40)) == 3
    assert [line.plain for line in widget.lines(10)] == ["one two", "three", "", "four five", "six"]


def test_a_long_growing_table_and_code_are_drawn_like_finished_ones() -> None:
    table = "| a | b |\n|---|--:|\n" + "".join(f"| row {n} with `code` | {n} |\n" for n in range(100))
    code = "```python\n" + "".join(f"def f{n}():\n\n    return {n}\n\n" for n in range(60))
    for source in (table, table + "| half", code, code + "    x"):
        widget = StreamMarkdown()
        widget.write(source)
        assert [line.plain for line in widget.lines(30)] == [line.plain for line in numbered_lines(parse(source), 30)]


def test_the_work_per_row_does_not_grow_with_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(markdown, "parse", lambda source: parsed.append(source) or parse(source))
    widget = StreamMarkdown()
    widget.write("| column | b |\n|---|---|\n")
    for number in range(300):
        widget.write(f"| a cell {number} | x |\n")
        widget.lines(80)
    assert max(len(source.splitlines()) for source in parsed[-100:]) <= 2 + 16
    assert len(parsed) <= 2 * 300

"""Answers for a screen reader: whole sentences and lines, and tables as `Header: value`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macllm_tui.lines.paced import PacedText

TABLE = "Sizes:\n\n| Name | Size |\n|:-----|-----:|\n| a \\| b | 3 |\n| c |\n\nThat is all.\n"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def written(source: str, length: int = 1) -> str:
    paced = PacedText()
    pieces = [source[at : at + length] for at in range(0, len(source), length)]
    return "".join([*map(paced.feed, pieces), paced.end()])


@given(st.text(alphabet="ab .!\n`~-#*:", max_size=80), st.integers(1, 9), st.booleans())
def test_text_without_tables_is_written_once_and_unchanged(source: str, length: int, silent: bool) -> None:
    paced, out = PacedText(), ""
    for at in range(0, len(source), length):
        out += paced.feed(source[at : at + length])
        out += paced.rest() if silent else ""
    assert out + paced.end() == source


@given(st.text(alphabet="a|-: \n`\\", max_size=60), st.integers(1, 9))
def test_no_words_are_lost_from_broken_tables(source: str, length: int) -> None:
    assert written(source, length).count("a") >= source.count("a") or "|" in source
    assert written(source, length) == written(source, 1)


def test_a_sentence_is_written_when_it_ends() -> None:
    paced = PacedText()
    assert paced.feed("It is 3.5 ") == ""
    assert paced.feed("metres. An") == "It is 3.5 metres. "
    assert paced.feed("d this") == ""
    assert paced.feed(" too\n") == "And this too\n"


def test_half_a_sentence_is_written_after_a_second_and_in_silence() -> None:
    clock = Clock()
    paced = PacedText(clock)
    assert paced.feed("one two thr") == ""
    clock.now = 1.1
    assert paced.feed("e") == "one two "
    assert paced.rest() == "thre"
    assert paced.feed("e. ") == "e. "


@pytest.mark.parametrize("length", [1, 3, 1000])
def test_a_table_is_read_row_by_row_with_its_headers(length: int) -> None:
    shown = "Sizes:\n\nName: a | b\nSize: 3\n\nName: c\n\n\nThat is all.\n"
    assert written(TABLE, length) == shown


def test_lines_with_bars_that_are_no_table_stay_and_code_too() -> None:
    for source in ("| not a table\nbut text\n", "| a |\n| b |\n| c |\n", "```\n| a |\n|---|\n| b |\n```\n", "| a |"):
        assert written(source) == source

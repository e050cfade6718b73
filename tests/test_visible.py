"""Foreign text is safe for a terminal: no character that it would obey, reorder by, or hide."""

from __future__ import annotations

import unicodedata

from macllm.visible import one_line, visible

DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
HIDDEN = {0xAD, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F, 0xFEFF, *range(0x2060, 0x2070), *range(0xFFF9, 0xFFFC)}
TAGS = range(0xE0000, 0xE0080)


def test_every_character_is_kept_unless_a_terminal_would_obey_or_hide_it() -> None:
    for code in range(0x110000):
        character = chr(code)
        shown, kind = visible(character), unicodedata.category(character)
        if kind == "Cc" and character not in "\n\t\r":
            assert shown.isprintable(), hex(code)
            assert len(shown) == 1, hex(code)
        elif kind == "Cs":
            assert shown == "\ufffd", hex(code)
        elif kind in ("Zl", "Zp"):
            assert shown == "\n", hex(code)
        elif code in HIDDEN or code in TAGS or unicodedata.bidirectional(character) in DIRECTIONS or character == "\r":
            assert shown == "", hex(code)
        else:
            assert shown == character, hex(code)


def test_escape_sequences_become_readable_text() -> None:
    assert visible("a\x1b[2J\x9b1mb\r\n\tc\x7f") == "a␛[2J\ufffd1mb\n\tc␡"


def test_emoji_and_words_that_need_joiners_stay_whole() -> None:
    for text in ("👩\u200d👩\u200d👧", "می\u200cخواهم", "❤\ufe0f"):
        assert visible(text) == text


def test_one_line_has_no_line_breaks_and_no_runs_of_space() -> None:
    assert one_line("a\n\n b\t\u2028c\x1b[1m") == "a b c␛[1m"

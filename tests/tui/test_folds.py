"""Folded pastes and attachments: markers, their expansion and their deletion."""

from __future__ import annotations

import random

import pytest

from macllm.chat.conversation import Attachment
from macllm_tui.text.folds import Folds, pasted, shown

LONG = "".join(f"line {n}\n" for n in range(120))


def plain(text: str) -> tuple[str, tuple[Attachment, ...]]:
    return text, ()


def test_a_long_paste_is_a_marker_and_expands_where_it_stands() -> None:
    folds = Folds()
    marker = folds.paste(LONG)
    assert marker == "[pasted 120 lines]"
    assert folds.expand(f"before {marker}after", plain) == (f"before {LONG}after", ())


@pytest.mark.parametrize("text", ["short", "ten\n" * 10, "x" * 1000])
def test_a_short_paste_stays_as_it_is(text: str) -> None:
    assert Folds().paste(text) == text


def test_a_long_line_counts_its_characters() -> None:
    assert Folds().paste("x" * 12_345) == "[pasted 12k characters]"


def test_two_pastes_of_one_size_have_two_markers_and_the_same_text_has_one() -> None:
    folds = Folds()
    first, second = folds.paste(LONG), folds.paste(LONG.upper())
    assert second == "[pasted 120 lines, 2]"
    assert folds.paste(LONG) == first
    assert folds.expand(first + second, plain)[0] == LONG + LONG.upper()


def test_a_marker_has_no_hidden_characters() -> None:
    folds = Folds()
    attached = Attachment("a\x1b[2J\u202eb\u200b\tc\n\x85.md", "xyz")
    marker = folds.attach(attached)
    assert marker == "[a[2Jbc .md, 3 characters]"
    assert folds.expand(marker, plain)[1] == (attached,)


def test_an_attachment_is_a_marker_that_names_it_in_the_message() -> None:
    folds = Folds()
    notes = Attachment("my notes.md", "x" * 1234)
    marker = folds.attach(notes)
    assert marker == "[my notes.md, 1.2k characters]"
    assert folds.expand(f"sum up {marker}", plain) == ('sum up @"my notes.md"', (notes,))


def test_a_marker_inside_a_paste_is_text() -> None:
    folds = Folds()
    inner = folds.paste(LONG)
    outer = folds.paste(f"{inner}\n" * 20)
    assert folds.expand(outer, plain)[0] == f"{inner}\n" * 20


def test_a_marker_that_begins_like_another_is_the_longer_one() -> None:
    folds = Folds()
    files = Attachment("a", "xyz"), Attachment("a, 3 characters] b", "later")
    markers = [folds.attach(file) for file in files]
    assert markers[1].startswith(markers[0])
    assert folds.expand(markers[1], plain) == ('@"a, 3 characters] b"', files[1:])


def test_names_in_a_paste_are_not_attached() -> None:
    folds = Folds()
    marker = folds.paste("@notes.md\n" * 20)
    seen: list[str] = []
    folds.expand(f"@a {marker} @b", lambda piece: (seen.append(piece) or piece, ()))
    assert seen == ["@a ", " @b"]


def test_any_mix_of_text_pastes_and_attachments_expands_and_folds_back() -> None:
    chance = random.Random(3)
    for _ in range(300):
        folds = Folds()
        text, expanded, attached = "", "", {}
        for _ in range(chance.randint(1, 6)):
            kind = chance.randrange(3)
            if kind == 0:
                words = chance.choice(["Hello ", "[pasted] ", "a\nb ", "é😀 ", "] ["])
                text, expanded = text + words, expanded + words
            elif kind == 1:
                content = "".join(chance.choice("ab[]\\$\n") for _ in range(chance.randint(1001, 1100)))
                text, expanded = text + folds.paste(content), expanded + content
            else:
                file = Attachment(f"{chance.choice('fgh')}.md", "z" * 30)
                attached[file.name] = file
                text, expanded = f"{text} {folds.attach(file)} ", f"{expanded} @{file.name} "
        assert folds.expand(text, plain) == (expanded, tuple(attached.values()))
        assert folds.restore(expanded, attached.values()) == text
        assert folds.fold(folds.unfold(text)) == text


def test_every_place_in_a_marker_deletes_all_of_it() -> None:
    folds = Folds()
    marker = folds.paste(LONG)
    text = f"ab{marker}cd"
    start, end = 2, 2 + len(marker)
    for index in range(len(text) + 1):
        assert folds.before(text, index) == ((start, end) if start < index <= end else None)
        assert folds.after(text, index) == ((start, end) if start <= index < end else None)


def test_a_message_from_the_conversation_gets_markers_for_its_attachments() -> None:
    folds, notes, stdin = Folds(), Attachment("notes.md", "abc"), Attachment("stdin", "x")
    assert folds.restore("sum up @notes.md, not @notes.md5", (notes, stdin)) == (
        "[stdin, 1 character] sum up [notes.md, 3 characters], not @notes.md5"
    )


def test_a_paste_has_no_carriage_returns_and_no_terminal_sequences() -> None:
    assert pasted("a\r\nb\rc\x0bd\u2028e") == "a\nb\nc\nd\ne"
    assert pasted("\x1b[1;31mred\x1b[0m \x1b]0;title\x07\x1b(Bx\x00\x9b\x7f\ttab") == "red x\ttab"
    chance = random.Random(5)
    for _ in range(500):
        text = "".join(chr(chance.choice([27, 91, 93, 13, 10, 7, 0x9B, 65, 59, 0x2028])) for _ in range(12))
        assert not any(ord(character) < 32 and character != "\n" for character in pasted(text))


def test_the_conversation_shows_the_beginning_of_a_long_message_and_its_attachments() -> None:
    assert shown("Hi", (Attachment("a.md", "x"),)) == "Hi\n[a.md, 1 character]"
    assert shown(LONG).split("\n")[10:] == ["line 10", "line 11", "… 109 more lines"]
    assert shown("x" * 9000).endswith("x\n… 5,000 more characters")

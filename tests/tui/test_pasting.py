"""Pastes with escape characters."""

from __future__ import annotations

import random

from textual import events

from macllm_tui.pasting import PasteParser

HOSTILE = "red \x1b[31mlog\x1b[0m\r\x07\x1b]52;c;QQ==\x07\x1b\x1b[20\x1b[2"


def parsed(*pieces: str) -> list[str]:
    parser = PasteParser()
    found = [event for piece in pieces for event in parser.feed(piece)]
    return [
        each.text if isinstance(each, events.Paste) else each.key for each in found if isinstance(each, events.Event)
    ]


def test_a_paste_with_escapes_and_newlines_is_no_key() -> None:
    assert parsed(f"a\x1b[200~{HOSTILE}\x1b[201~b\x1b[200~x\0y\x1b[201~") == ["a", HOSTILE, "b", "xy"]


def test_a_paste_in_any_pieces_is_one_paste() -> None:
    chance = random.Random(1)
    data = f"{HOSTILE}\x1b[201~b"
    for _ in range(200):
        at = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randint(0, 5)))
        cuts = [0, *at, len(data)]
        pieces = [data[start:end] for start, end in zip(cuts, cuts[1:], strict=False) if start < end]
        assert parsed("\x1b[200~", *pieces) == [HOSTILE, "b"]

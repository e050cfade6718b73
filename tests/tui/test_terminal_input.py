"""The terminal's input: pastes with escape characters, and bytes that are no text."""

from __future__ import annotations

import itertools
import random

from textual import events
from textual.drivers import linux_driver

from macllm_tui.terminal_input import read_safely

HOSTILE = "red \x1b[31mlog\x1b[0m\r\x07\x1b]52;c;QQ==\x07\x1b\x1b[20\x1b[2"


def parsed(*pieces: str) -> list[str]:
    read_safely(linux_driver.LinuxDriver)
    parser = linux_driver.XTermParser(False)
    found = [event for piece in pieces for event in parser.feed(piece)]
    return [each.text if isinstance(each, events.Paste) else getattr(each, "key", "") for each in found]


def test_a_paste_with_escapes_and_newlines_is_no_key() -> None:
    assert parsed(f"a\x1b[200~{HOSTILE}\x1b[201~b\x1b[200~x\0y\x1b[201~") == ["a", HOSTILE, "b", "xy"]


def test_a_paste_in_any_pieces_is_one_paste() -> None:
    chance = random.Random(1)
    data = f"{HOSTILE}\x1b[201~b"
    for _ in range(200):
        cuts = [0, *sorted(chance.randrange(len(data) + 1) for _ in range(chance.randint(0, 5))), len(data)]
        pieces = [data[start:end] for start, end in itertools.pairwise(cuts) if start < end]
        assert parsed("\x1b[200~", *pieces) == [HOSTILE, "b"]


def test_bytes_that_are_no_text_end_nothing() -> None:
    read_safely(linux_driver.LinuxDriver)
    decode = linux_driver.getincrementaldecoder("utf-8")().decode
    assert decode(b"a\xffb\xc3") + decode(b"\xa9") == "a\ufffdbé"

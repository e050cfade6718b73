from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from macllm.generation.stop import StopStrings

texts = st.text(alphabet="abc", max_size=30)
stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=3)


def literal(text: str, strings: list[str]) -> tuple[str, bool]:
    """Read one character at a time; stop as soon as the text read ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [string for string in strings if text[:end].endswith(string)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(text=texts, strings=stops, cuts=st.lists(st.integers(0, 30), max_size=12))
def test_the_shown_text_does_not_depend_on_how_it_is_cut(text: str, strings: list[str], cuts: list[int]) -> None:
    stop, shown = StopStrings(strings), ""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(edges):
        shown += stop.add(text[start:end])
        assert literal(text, strings)[0].startswith(shown)
    stopped = stop.stopped
    shown += stop.finish()
    assert (shown, stopped) == literal(text, strings)


@given(text=texts, strings=stops)
def test_text_that_cannot_become_a_stop_string_is_not_held_back(text: str, strings: list[str]) -> None:
    stop = StopStrings(strings)
    shown = stop.add(text)
    held = literal(text, strings)[0][len(shown) :]
    assert not held or any(string.startswith(held) for string in strings)


def test_without_stop_strings_text_passes_at_once() -> None:
    stop = StopStrings([])
    assert stop.add("anything") == "anything"
    assert not stop.stopped


def test_nothing_is_shown_after_the_stop() -> None:
    stop = StopStrings(["\n\n"])
    assert [stop.add(piece) for piece in ["a\n", "\nb", "c"]] == ["a", "", ""]
    assert stop.finish() == ""

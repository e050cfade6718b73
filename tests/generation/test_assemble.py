from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macllm.generation.assemble import Assembler
from macllm.generation.decode import Sampled
from macllm.generation.request import Delta, TokenLogprob
from macllm.generation.stop import StopStrings
from tests.generation.generate_fakes import EOS, FakeDetokenizer


class Whole:
    """Splitter that takes all text for content."""

    def add(self, text: str) -> Iterator[tuple[str, str, int | None]]:
        yield "content", text, None

    def finish(self) -> Iterator[tuple[str, str, int | None]]:
        yield from ()


class Angles(Whole):
    """Splitter with reasoning between < and >; the angle brackets are dropped."""

    kind = "content"

    def add(self, text: str) -> Iterator[tuple[str, str, int | None]]:
        for char in text:
            if char in "<>":
                self.kind = "reasoning" if char == "<" else "content"
            else:
                yield self.kind, char, None


def assemble(pieces: list[bytes], stop: tuple[str, ...] = (), splitter: Whole | None = None) -> tuple[list[Delta], int]:
    """Deltas of the tokens 0, 1, ... with these pieces, and the number of tokens read."""
    assembler = Assembler(FakeDetokenizer(pieces), splitter or Whole(), stop)
    deltas, used = [], 0
    for token in range(len(pieces)):
        deltas += assembler.add(Sampled(token, TokenLogprob(token, -float(token))))
        used += 1
        if assembler.stopped:
            break
    deltas += assembler.finish()
    assert assembler.shown == sum(len(delta.tokens) for delta in deltas)
    return deltas, used


def cut(text: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(each, len(text)) for each in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@given(
    text=st.text(alphabet="ab€🙂", max_size=20),
    cuts=st.lists(st.integers(0, 60), max_size=15),
    stop=st.lists(st.text(alphabet="ab€", min_size=1, max_size=3), max_size=2),
)
def test_any_split_of_a_text_into_tokens_gives_the_same_text(text: str, cuts: list[int], stop: list[str]) -> None:
    deltas, used = assemble(cut(text.encode(), cuts), tuple(stop))
    whole = StopStrings(stop)
    expected = whole.add(text)
    expected += whole.finish()
    assert "".join(delta.text for delta in deltas) == expected
    tokens = [token for delta in deltas for token in delta.tokens]
    assert tokens == list(range(len(tokens)))
    assert len(tokens) <= used
    if not whole.stopped:
        assert len(tokens) == used
    assert [logprob.token for delta in deltas for logprob in delta.logprobs] == tokens


def test_tokens_inside_a_stop_string_are_dropped_and_one_that_begins_before_it_is_kept() -> None:
    deltas, used = assemble([b"go ", b"on E", b"N", b"D", b"more"], ("END",))
    assert "".join(delta.text for delta in deltas) == "go on "
    assert [token for delta in deltas for token in delta.tokens] == [0, 1]
    assert used == 4


def test_a_token_held_back_for_a_stop_string_is_released_with_its_own_text() -> None:
    deltas, _ = assemble([b"x", b"l", b"l", b"o", b"!"], ("lo",))
    assert [(delta.text, delta.tokens) for delta in deltas] == [("x", (0,)), ("l", (1,))]


def test_a_character_of_four_tokens_appears_with_the_last() -> None:
    deltas, _ = assemble([bytes([byte]) for byte in "🙂".encode()] + [b"!"])
    assert [(delta.text, delta.tokens) for delta in deltas] == [("🙂", (0, 1, 2, 3)), ("!", (4,))]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_an_incomplete_last_character_is_shown_as_the_tokenizer_decodes_it(length: int) -> None:
    deltas, _ = assemble([b"a", *(bytes([byte]) for byte in "🙂".encode()[:length])])
    assert "".join(delta.text for delta in deltas) == (b"a" + "🙂".encode()[:length]).decode(errors="replace")
    assert [token for delta in deltas for token in delta.tokens] == list(range(length + 1))


def test_deltas_carry_their_kind_and_no_token_is_lost() -> None:
    deltas, _ = assemble([b"<", b"hm", b"m>", b"Yes", b"<"], splitter=Angles())
    kinds = [(delta.kind, delta.text, delta.tokens) for delta in deltas]
    assert kinds == [
        ("reasoning", "h", (0, 1)),
        ("reasoning", "m", ()),
        ("reasoning", "m", (2,)),
        ("content", "Y", (3,)),
        ("content", "e", ()),
        ("content", "s", ()),
        ("content", "", (4,)),
    ]


def test_hidden_tokens_have_no_text() -> None:
    assembler = Assembler(FakeDetokenizer([b"a", b"b"]), Whole(), hidden=frozenset({EOS}))
    deltas = [delta for token in (0, EOS, 1) for delta in assembler.add(Sampled(token))] + assembler.finish()
    assert [(delta.text, delta.tokens) for delta in deltas] == [("a", (0,)), ("b", (EOS, 1))]

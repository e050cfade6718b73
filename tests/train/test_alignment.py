from __future__ import annotations

import pytest

from macllm.errors import DataError
from macllm.train.alignment import Span, align, completion_tokens, text_tokens
from tests.train.toy import CharTokenizer


class Given(CharTokenizer):
    """A tokenizer whose tokens have given characters."""

    def __init__(self, *spans: Span) -> None:
        super().__init__()
        self._spans = list(spans)

    def offsets(self, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[Span]]:
        return list(range(len(self._spans))), self._spans


@pytest.mark.parametrize(
    ("characters", "span", "tokens"),
    [
        ([(0, 2), (2, 4), (4, 6)], (2, 4), (1, 2)),
        ([(0, 2), (2, 4), (4, 6)], (3, 4), (1, 2)),  # across the beginning
        ([(0, 2), (2, 4), (4, 6)], (2, 5), (1, 3)),  # across the end
        ([(0, 2), (2, 4), (4, 6)], (0, 6), (0, 3)),
        ([(0, 2), (2, 3), (2, 3), (2, 3), (3, 4)], (2, 3), (1, 4)),  # three bytes of a character
        ([(0, 2), (2, 3), (2, 3), (3, 4)], (0, 2), (0, 1)),
        ([(0, 2), (3, 4), (4, 6)], (2, 4), (1, 2)),  # a space left out at the beginning of a token
        ([(0, 2), (4, 4), (4, 6)], (2, 6), (1, 3)),  # a token of white space, without its characters
        ([(0, 2), (4, 4), (4, 6)], (0, 2), (0, 1)),
        ([(0, 2), (4, 4), (4, 6)], (0, 4), (0, 2)),
        ([(0, 2), (2, 4)], (4, 4), (2, 2)),  # an empty answer
    ],
)
def test_the_tokens_of_a_span_are_all_that_overlap_it(characters: list[Span], span: Span, tokens: Span) -> None:
    assert align("abcdef", [span], Given(*characters), "f:1")[1] == [tokens]


class Joining(CharTokenizer):
    """A tokenizer with the token `bc`."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return super().encode(text.replace("bc", "\u0100"), add_special_tokens)


class Scrambling(CharTokenizer):
    """A tokenizer whose tokens all depend on the length of the text."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) + len(text) for c in text]


def test_without_offsets_bounds_are_found_by_tokenizing_prefixes() -> None:
    assert align("abcd", [(2, 3), (3, 4)], Joining(), "f:1") == ([97, 256, 100], [(1, 2), (2, 3)])
    with pytest.raises(DataError, match=r"f:1.*token boundary"):
        align("abcd", [(2, 3)], Scrambling(), "f:1")


class Closing(Joining):
    """A tokenizer that adds two tokens before a text and one after it."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        inner = super().encode(text, False)
        return [1, 2, *inner, 3] if add_special_tokens else inner


def test_a_prompt_and_its_completion_are_tokenized_as_one_text() -> None:
    assert completion_tokens("ab", "cd", Closing(), "f:1") == ([1, 2, 97, 256, 100, 3], 3)
    assert completion_tokens("a", "d", Closing(), "f:1") == ([1, 2, 97, 100, 3], 3)
    assert completion_tokens("", "d", Closing(), "f:1") == ([1, 2, 100, 3], 2)
    assert completion_tokens("a", "", Closing(), "f:1") == ([1, 2, 97, 3], 3)


class Around(CharTokenizer):
    """A tokenizer that adds one token before a text and one after it."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        inner = super().encode(text, False)
        return [2, *inner, 3] if add_special_tokens else inner


@pytest.mark.parametrize("text", ["ab", "\x02ab", "ab\x03", "\x02ab\x03", "aa", "aa\x03", "\x02aa", "\x02"])
def test_the_tokens_around_a_text_are_not_doubled_where_it_has_them(text: str) -> None:
    inner = [ord(char) for char in text.strip("\x02\x03")]
    assert text_tokens(text, Around()) == [2, *inner, 3]
    prompt, completion = text[:2], text[2:]
    tokens, start = completion_tokens(prompt, completion, Around(), "f:1")
    assert tokens == [2, *inner, 3]
    assert start == 1 + len(prompt.strip("\x02"))

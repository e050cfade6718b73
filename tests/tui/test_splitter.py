from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from macllm_tui.text.splitter import BlockSplitter

WORDS = st.text("abc xyz.", min_size=1, max_size=12).map(str.strip).filter(bool)
LINES = st.lists(WORDS, min_size=1, max_size=3)
PARAGRAPHS = LINES.map("\n".join)
HEADINGS = st.builds(lambda level, text: "#" * level + " " + text, st.integers(1, 6), WORDS)
CODE = st.builds(
    lambda fence, lines: f"{fence}python\n" + "\n".join(lines) + f"\n{fence}",
    st.sampled_from(["```", "~~~", "````"]),
    st.lists(st.sampled_from(["x = 1", "", "# no heading", "- no item", "| no | table |", "``"]), max_size=5),
)
TABLES = st.integers(1, 4).map(lambda rows: "| a | b |\n|---|---|\n" + "\n".join("| 1 | 2 |" for _ in range(rows)))
QUOTES = LINES.map(lambda lines: "\n".join("> " + line for line in lines))
ITEMS = st.builds(
    lambda marker, lines: marker + " " + ("\n" + " " * (len(marker) + 1)).join(lines),
    st.sampled_from(["-", "*", "1.", "12)"]),
    LINES,
)
LISTS = st.lists(ITEMS, min_size=1, max_size=4).map("\n".join)
SIMPLE = st.lists(st.one_of(PARAGRAPHS, HEADINGS, CODE, TABLES, QUOTES), min_size=1, max_size=6).map("\n\n".join)
DOCUMENTS = st.lists(st.one_of(PARAGRAPHS, HEADINGS, CODE, TABLES, QUOTES, LISTS), max_size=6).map("\n\n".join)
NOISE = st.text("ab`~-*#|> \n\t1.)\r", max_size=80)


def split(text: str, cuts: list[int]) -> list[str]:
    """All blocks of a text that is fed in pieces of the given lengths."""
    splitter, blocks, position = BlockSplitter(), [], 0
    for length in cuts:
        blocks += splitter.feed(text[position : position + length])
        position += length
        assert "".join(blocks) + splitter.tail == text[:position]
    return blocks + splitter.feed(text[position:]) + splitter.finish()


@settings(max_examples=50, deadline=None)
@given(st.one_of(DOCUMENTS, NOISE), st.lists(st.integers(0, 9), max_size=40))
def test_the_blocks_join_to_the_text_and_do_not_depend_on_the_pieces(text: str, cuts: list[int]) -> None:
    blocks = split(text, cuts)
    assert "".join(blocks) == text
    assert blocks == split(text, [])
    assert all(blocks)


@settings(max_examples=50, deadline=None)
@given(SIMPLE)
def test_rendered_blocks_join_to_the_rendered_document(text: str) -> None:
    """Without lists, since a single item is rendered as a list."""
    markdown = MarkdownIt("gfm-like")
    assert "".join(markdown.render(block) for block in split(text, [])) == markdown.render(text)


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS)
def test_no_block_is_cut_inside_a_fence(text: str) -> None:
    for block in split(text, []):
        assert sum(line.startswith("```python") for line in block.splitlines()) <= 1
        assert ("```python" in block) == ("\n```" in block.replace("```python", "", 1))


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("a\n\nb\n\nc", ["a\n\n", "b\n\n", "c"]),
        ("# T\ntext\n", ["# T\n", "text\n"]),
        ("text\n# T\n", ["text\n", "# T\n"]),
        ("- a\n- b\n  more\n- c\n", ["- a\n", "- b\n  more\n", "- c\n"]),
        ("1. a\n2. b\n", ["1. a\n", "2. b\n"]),
        ("- a\n  - b\n  - c\n- d\n", ["- a\n  - b\n  - c\n", "- d\n"]),
        ("1. a\n\n   ```sh\n   ls\n   ```\n\n2. b\n", ["1. a\n\n   ```sh\n   ls\n   ```\n\n", "2. b\n"]),
        ("- a\n\n  more\n\ntext\n", ["- a\n\n  more\n\n", "text\n"]),
        ("- a\nlazy\n\nend\n", ["- a\nlazy\n\n", "end\n"]),
        ("in 1999\n2. that year\n", ["in 1999\n2. that year\n"]),
        ("say\n```\nx\n\ny\n```\nend", ["say\n", "```\nx\n\ny\n```\n", "end"]),
        ("````\n```\n````\n", ["````\n```\n````\n"]),
        ("~~~\n```\n~~~\nx", ["~~~\n```\n~~~\n", "x"]),
        ("``` not `a` fence\n\nx", ["``` not `a` fence\n\n", "x"]),
        ("| a |\n|---|\n| 1 |\n\nx", ["| a |\n|---|\n| 1 |\n\n", "x"]),
        ("\n\n\na\n\n\n\nb", ["\n\n\na\n\n", "\n\nb"]),
        ("```\nopen", ["```\nopen"]),
        ("", []),
    ],
)
def test_blocks_end_as_soon_as_they_cannot_change(text: str, blocks: list[str]) -> None:
    assert split(text, []) == blocks


def test_every_item_of_a_long_list_is_finished_as_soon_as_the_next_begins() -> None:
    splitter: Any = BlockSplitter()
    for number in range(50):
        splitter.feed(f"{number + 1}. item\n")
        assert splitter.tail == f"{number + 1}. item\n"

"""Foreign text, safe for a terminal: control characters made visible, hidden ones removed.

Foreign text is whatever macllm did not write itself: a model's answer, names of models, files and conversations, and
error messages that quote them.
"""

from __future__ import annotations

import unicodedata

_PICTURES: dict[int, int | None] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t\r"},
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),  # C1: some terminals interpret these too
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),  # surrogates, which no encoding can write
    0x7F: 0x2421,
    ord("\r"): None,
    0x2028: ord("\n"),
    0x2029: ord("\n"),
    # Direction: marks, embeddings, overrides and isolates, which reorder what stands around them
    **dict.fromkeys([0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]),
    # Without width or glyph. The joiners U+200C and U+200D stay: Persian, Indic scripts and emoji are wrong without.
    **dict.fromkeys([0x00AD, 0x180E, 0x200B, 0xFEFF, *range(0x2060, 0x2066), *range(0x206A, 0x2070)]),
    **dict.fromkeys([*range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)]),
}
_NOTHING = dict.fromkeys([*_PICTURES, ord("\n"), ord("\t")])


def visible(text: str) -> str:
    """`text` with newlines and tabs, but without any character that a terminal would obey or hide."""
    return text.translate(_PICTURES)


def without_hidden(text: str) -> str:
    """`text` of the same width without such characters, newlines and tabs."""
    return text.translate(_NOTHING)


def one_line(text: str) -> str:
    """The same in one line: each run of white space is one space."""
    return " ".join(visible(text).split())


def unbroken(text: str) -> str:
    """The same in one line with the spaces kept: each newline or tab is a space."""
    return visible(text).replace("\n", " ").replace("\t", " ")


def cells(text: str) -> int:
    """Columns of a terminal that one line of text takes; East Asian wide characters take two, marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def fitted(text: str, width: int) -> str:
    """One line of exactly `width` columns: padded with spaces, or cut with an ellipsis."""
    if cells(text) > width:
        while text and cells(text) >= width:
            text = text[:-1]
        text += "…"
    return text + " " * (width - cells(text))

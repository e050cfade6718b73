"""Text of a model made safe for a terminal."""

from __future__ import annotations

_PICTURES: dict[int, int | None] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t\r"},
    **{code: 0xFFFD for code in range(0x80, 0xA0)},  # C1: some terminals obey these too
    0x7F: 0x2421,
    ord("\r"): None,
}


def visible(text: str) -> str:
    """`text` with every control character but newline and tab as a picture of itself: nothing a terminal would obey."""
    return text.translate(_PICTURES)

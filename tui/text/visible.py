"""Control characters of a model's text, made visible."""

from __future__ import annotations

_PICTURES: dict[int, int | None] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t\r"},
    **{code: 0xFFFD for code in range(0x80, 0xA0)},  # C1: some terminals interpret these too
    0x7F: 0x2421,
    ord("\r"): None,
}


def visible(text: str) -> str:
    """`text` with control characters other than newline and tab replaced by Unicode control pictures."""
    return text.translate(_PICTURES)

"""Quantities as text, in the units and with the digits that people read."""

from __future__ import annotations

import time


def bytes_text(size_bytes: float) -> str:
    """A size in decimal units, as macOS and disk vendors use them: 512 B, 14.2 MB, 4.1 GB."""
    if size_bytes < 999.5:
        return f"{size_bytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size_bytes /= 1000
        if size_bytes < 999.95:
            return f"{size_bytes:.1f} {unit}"
    return f"{size_bytes / 1000:.1f} TB"


def duration_text(seconds: float, *, fine: bool = False) -> str:
    """A duration: 42 s, 3 min 05 s, 2 h 07 min; with `fine`, 0.31 s and 4.1 s below a minute."""
    if fine and seconds < 0.995:
        return f"{seconds:.2f} s"
    if fine and seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def date_text(seconds: float) -> str:
    """A time in seconds since 1970 as the local date and time: 2026-11-29 14:02."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def count_text(number: int) -> str:
    """A whole number with thousands separators: 32,768."""
    return f"{number:,}"


def tokens_text(number: int) -> str:
    """A number of tokens in words: 1 token, 2,048 tokens."""
    return f"{count_text(number)} token{'s' * (number != 1)}"


def short_count_text(number: int) -> str:
    """A whole number in at most five characters: 812, 9.6k, 128k, 1.0M."""
    if number < 1000:
        return str(number)
    if number < 999_500:
        return f"{number / 1000:.1f}k" if number < 9950 else f"{number / 1000:.0f}k"
    return f"{number / 1_000_000:.1f}M"


def speed_text(tokens_per_second: float) -> str:
    """A speed to one decimal below 100: 61.4 tok/s, 312 tok/s."""
    digits = 0 if tokens_per_second >= 99.95 else 1
    return f"{tokens_per_second:.{digits}f} tok/s"

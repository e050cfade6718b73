"""Quantities in few characters."""

from __future__ import annotations

from collections import deque

_WINDOW_SECONDS = 2.0


def count(number: int) -> str:
    """A whole number with its thousands apart: 32,768."""
    return f"{number:,}"


def tokens(number: int) -> str:
    """A number of tokens in words: 1 token, 2,048 tokens."""
    return f"{count(number)} token{'s' * (number != 1)}"


def short_count(number: int) -> str:
    """A whole number in at most five characters: 812, 9.6k, 128k, 1.0M."""
    if number < 1000:
        return str(number)
    if number < 1_000_000:
        return f"{number / 1000:.1f}k" if number < 9950 else f"{number / 1000:.0f}k"
    return f"{number / 1_000_000:.1f}M"


def rate(tokens_per_second: float) -> str:
    """A speed with three figures at most: 61.4 tok/s, 312 tok/s."""
    digits = 0 if tokens_per_second >= 100 else 1
    return f"{tokens_per_second:.{digits}f} tok/s"


class Speed:
    """Tokens a second over the last two seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, tokens: int, now: float) -> None:
        """Count tokens that arrived at `now` (seconds of any steady clock)."""
        self._seen.append((now, tokens))
        while now - self._seen[0][0] > _WINDOW_SECONDS:
            self._seen.popleft()

    @property
    def tokens_per_second(self) -> float | None:
        """None until it can be told."""
        if len(self._seen) < 2 or self._seen[-1][0] - self._seen[0][0] < 0.05:
            return None
        counted = sum(tokens for _, tokens in self._seen) - self._seen[0][1]
        return counted / (self._seen[-1][0] - self._seen[0][0])

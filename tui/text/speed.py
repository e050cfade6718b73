"""Speed of a streaming answer."""

from __future__ import annotations

from collections import deque

_WINDOW_SECONDS = 2.0


class SpeedMeter:
    """Tokens per second over the last two seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, tokens: int, now: float) -> None:
        """Count tokens that arrived at `now` (seconds of a monotonic clock)."""
        self._seen.append((now, tokens))
        while now - self._seen[0][0] > _WINDOW_SECONDS:
            self._seen.popleft()

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second; None for the first 0.05 s."""
        if len(self._seen) < 2 or self._seen[-1][0] - self._seen[0][0] < 0.05:
            return None
        counted = sum(tokens for _, tokens in self._seen) - self._seen[0][1]
        return counted / (self._seen[-1][0] - self._seen[0][0])

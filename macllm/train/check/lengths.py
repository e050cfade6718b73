"""Distribution of lengths: quantiles and the bars of a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MOST_BARS = 12
_NARROW = 8  # ratio of the longest to the shortest up to which all bars have one width


@dataclass(frozen=True)
class Lengths:
    """Quantiles of lengths in tokens, by nearest rank, and bars of (first, last, count), without gaps."""

    total: int = 0
    least: int = 0
    median: int = 0
    p95: int = 0
    most: int = 0
    bars: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """The distribution of `lengths`; zeros for none."""
        if not lengths:
            return cls()
        ranked = np.sort(np.asarray(lengths, dtype=np.int64))
        median, p95 = (int(np.quantile(ranked, share, method="inverted_cdf")) for share in (0.5, 0.95))
        least, most = int(ranked[0]), int(ranked[-1])
        return cls(int(ranked.sum()), least, median, p95, most, _bars(ranked, _edges(least, most)))


def _bars(ranked: np.ndarray, edges: list[int]) -> tuple[tuple[int, int, int], ...]:
    places = np.searchsorted(ranked, edges).tolist()
    return tuple(
        (low, high - 1, stop - start)
        for low, high, start, stop in zip(edges, edges[1:], places, places[1:], strict=False)
    )


def _edges(least: int, most: int) -> list[int]:
    """Bounds of the bars: of one round width for similar lengths, else doubling."""
    if most >= _NARROW * max(1, least):
        edges = [1 << max(0, least.bit_length() - 1) if least else 0]
        while edges[-1] <= most:
            edges.append(max(1, 2 * edges[-1]))
        return edges if len(edges) <= _MOST_BARS + 1 else [edges[0], *edges[-_MOST_BARS:]]
    width = next(step * 10**power for power in range(20) for step in (1, 2, 5)
                 if (most - least) // (step * 10**power) < _MOST_BARS - 1)  # fmt: skip
    first = least - least % width
    return list(range(first, most + width + 1, width))[: (most - first) // width + 2]

"""Plots of points and lines, as text for a terminal and as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

_WIDTH, _HEIGHT, _MARGIN = 720, 440, 64  # of an SVG, in pixels
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # Paul Tol's bright scheme
_TICKS = 5
_POINTS, _LINES = "o+x*", ".:~-"
_LEAST_COLUMNS, _LEAST_ROWS = 24, 6
_Placing = Callable[[float, float], tuple[float, float]]  # from places on both scales to pixels


@dataclass(frozen=True)
class Series:
    """Points (x, y) with a name, drawn as dots or joined by a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Literal["points", "line"] = "points"


@dataclass(frozen=True)
class Axis:
    """A title, and a linear or logarithmic scale."""

    title: str
    is_log: bool = False

    def place(self, value: float) -> float:
        """The place of a value on the scale."""
        return math.log10(value) if self.is_log else value

    def text(self, place: float) -> str:
        """The value at a place."""
        return f"{10**place if self.is_log else place:.3g}"


@dataclass(frozen=True)
class Plot:
    """Series over two axes. Raises ValueError without any point."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]

    def text(self, columns: int = 72, rows: int = 18) -> str:
        """Lines of at most `columns` characters: title, `rows` rows of the plot, axis and legend."""
        (x_low, x_high), (y_low, y_high) = self._ranges()
        labels = [self.y.text(y_low + (y_high - y_low) * i / 2) for i in range(3)]
        margin = max(map(len, labels)) + 1
        width, height = max(columns - margin - 1, _LEAST_COLUMNS), max(rows, _LEAST_ROWS)
        cells = [[" "] * width for _ in range(height)]
        for one, mark in self._marked():
            for place_x, place_y in self._places(one, 4 * width):
                column = round((place_x - x_low) / (x_high - x_low) * (width - 1))
                row = round((y_high - place_y) / (y_high - y_low) * (height - 1))
                if 0 <= column < width and 0 <= row < height:
                    cells[row][column] = mark
        named = {0: labels[2], (height - 1) // 2: labels[1], height - 1: labels[0]}
        lines = [f"{named.get(n, '').rjust(margin)}|{''.join(row)}".rstrip() for n, row in enumerate(cells)]
        ends = self.x.text(x_low), self.x.text(x_high)
        space = max(1, width - sum(map(len, ends)))
        title = self.x.title.center(space) if len(self.x.title) <= space else " " * space
        legend = "  ".join(f"{mark} {one.name}" for one, mark in self._marked())
        below = f"{' ' * margin}+{'-' * width}", f"{' ' * (margin + 1)}{ends[0]}{title}{ends[1]}"
        return "\n".join([f"{self.title} ({self.y.title})", *lines, *below, f"{' ' * (margin + 1)}{legend}"])

    def svg(self) -> str:
        """The plot as an SVG image."""
        (x_low, x_high), (y_low, y_high) = self._ranges()

        def at(x: float, y: float) -> tuple[float, float]:
            across = (x - x_low) / (x_high - x_low) * (_WIDTH - 2 * _MARGIN) + _MARGIN
            return across, (y_high - y) / (y_high - y_low) * (_HEIGHT - 2 * _MARGIN) + _MARGIN

        size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="13"'
        parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', '<rect width="100%" height="100%" fill="white"/>']
        parts += self._frame(at)
        for number, one in enumerate(self.series):
            color = _COLORS[number % len(_COLORS)]
            places = [at(x, y) for x, y in self._places(one, 1)]
            if one.kind == "line":
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
                parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
            else:
                look = f'r="3" fill="{color}" fill-opacity="0.7"'
                parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" {look}/>' for x, y in places]
            legend = _WIDTH - _MARGIN - 8, _MARGIN + 18 * number + 12
            parts.append(_svg_text(one.name, *legend, anchor="end", more=f'fill="{color}"'))
        return "\n".join([*parts, "</svg>", ""])

    def _frame(self, at: _Placing) -> Iterator[str]:
        """Title, axes, grid and the texts along the axes."""
        (x_low, x_high), (y_low, y_high) = self._ranges()
        yield _svg_text(self.title, _WIDTH / 2, 24, more='font-size="16"')
        yield _svg_text(self.x.title, _WIDTH / 2, _HEIGHT - 14)
        yield _svg_text(self.y.title, 16, _HEIGHT / 2, more=f'transform="rotate(-90 16 {_HEIGHT / 2})"')
        for part in range(_TICKS):
            x = x_low + (x_high - x_low) * part / (_TICKS - 1)
            y = y_low + (y_high - y_low) * part / (_TICKS - 1)
            (left, low), (right, high) = at(x, y_low), at(x_high, y)
            yield f'<line x1="{left:.1f}" y1="{_MARGIN}" x2="{left:.1f}" y2="{low:.1f}" stroke="#ddd"/>'
            yield f'<line x1="{_MARGIN}" y1="{high:.1f}" x2="{right:.1f}" y2="{high:.1f}" stroke="#ddd"/>'
            yield _svg_text(self.x.text(x), left, low + 18)
            yield _svg_text(self.y.text(y), _MARGIN - 6, high + 4, anchor="end")

    def _marked(self) -> Iterator[tuple[Series, str]]:
        """Each series with its character."""
        marks = {"points": iter(_POINTS * len(self.series)), "line": iter(_LINES * len(self.series))}
        return ((one, next(marks[one.kind])) for one in self.series)

    def _places(self, one: Series, most: int) -> Iterator[tuple[float, float]]:
        """Places of a series on both scales; a line with up to `most` places between two points."""
        places = [(self.x.place(x), self.y.place(y)) for x, y in zip(one.x, one.y, strict=True)]
        if one.kind == "points" or most == 1:
            yield from places
            return
        for (x, y), (next_x, next_y) in pairwise(places):
            for part in range(most):
                share = part / most
                yield x + (next_x - x) * share, y + (next_y - y) * share

    def _ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Lowest and highest places on both axes, never the same."""
        x = [self.x.place(value) for one in self.series for value in one.x]
        y = [self.y.place(value) for one in self.series for value in one.y]
        if not x:
            raise ValueError("a plot needs points")
        return _range(x), _range(y)


def _svg_text(text: str, x: float, y: float, *, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _range(places: Sequence[float]) -> tuple[float, float]:
    low, high = min(places), max(places)
    return (low, high) if high > low else (low - 0.5, high + 0.5)

"""Plots as text and as SVG."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from macllm.evaluate.plot import Axis, Plot, Series

LINE = Plot("Sums", Axis("n"), Axis("sum"), [Series("sums", [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], "line")])


def test_the_text_has_every_point_in_its_place() -> None:
    plot = Plot("Squares", Axis("x", is_log=True), Axis("y", is_log=True), [Series("s", [1, 10, 100], [1, 100, 10000])])
    lines = plot.text(columns=40, rows=9).splitlines()
    rows = [line.partition("|")[2] for line in lines[1:10]]
    assert [row.index("o") for row in rows if "o" in row] == [len(max(rows, key=len)) - 1, 16, 0]
    assert [n for n, row in enumerate(rows) if "o" in row] == [0, 4, 8]
    assert lines[1].strip().startswith("1e+04|")
    assert lines[9].strip().startswith("1|")
    assert max(map(len, lines)) <= 40


def test_a_line_fills_the_cells_between_its_points() -> None:
    rows = [line.partition("|")[2] for line in LINE.text(columns=40, rows=10).splitlines()[1:11]]
    assert all("." in row for row in rows)
    assert len({n for row in rows for n, cell in enumerate(row) if cell == "."}) == len(rows[0])


def test_the_svg_is_well_formed_and_escapes_names() -> None:
    points = Series("<script>", [1.0, 2.0], [3.0, 3.0])
    text = Plot("a & b", Axis("x"), Axis("y"), [points, *LINE.series]).svg()
    root = ElementTree.fromstring(text)
    tags = [each.tag.rpartition("}")[2] for each in root.iter()]
    assert tags.count("circle") == 2
    assert tags.count("polyline") == 1
    assert "<script>" not in text
    assert "a & b" in [each.text for each in root.iter()]


def test_a_single_point_is_in_the_middle_and_none_is_refused() -> None:
    plot = Plot("one", Axis("x"), Axis("y"), [Series("s", [5.0], [5.0])])
    rows = [line.partition("|")[2] for line in plot.text(columns=41, rows=9).splitlines()[1:10]]
    assert "o" in rows[4]
    with pytest.raises(ValueError, match="needs points"):
        Plot("none", Axis("x"), Axis("y"), []).text()

"""Sizes and time spans as people read them."""

from __future__ import annotations

import pytest

from macllm.units import bytes_text, duration_text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1.0 kB"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (15_800_000, "15.8 MB"),
        (999_960_000, "1.0 GB"),
        (4.1e9, "4.1 GB"),
        (999.96e9, "1.0 TB"),
        (2.5e12, "2.5 TB"),
        (9e15, "9000.0 TB"),
    ],
)
def test_a_size_is_in_decimal_units_and_never_a_thousand_of_one(size_bytes: float, text: str) -> None:
    assert bytes_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_a_time_span_has_no_sixty_seconds(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 s"),
        (0.314, "0.31 s"),
        (0.997, "1.0 s"),
        (4.1, "4.1 s"),
        (59.96, "1 min 00 s"),
        (119.7, "2 min 00 s"),
        (3725, "1 h 02 min"),
    ],
)
def test_a_short_time_span_has_its_hundredths_or_tenths(seconds: float, text: str) -> None:
    assert duration_text(seconds, fine=True) == text

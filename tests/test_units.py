"""Sizes and time spans as people read them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from macllm.units import bytes_text, count_text, duration_text, short_count_text, speed_text, tokens_text


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
def test_a_size_is_rounded_before_its_decimal_unit_is_chosen(size_bytes: float, text: str) -> None:
    assert bytes_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_a_time_span_is_rounded_before_its_unit_is_chosen(seconds: float, text: str) -> None:
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
def test_a_fine_time_span_has_hundredths_or_tenths_of_a_second(seconds: float, text: str) -> None:
    assert duration_text(seconds, fine=True) == text


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (9949, "9.9k"),
        (9950, "10k"),
        (9999, "10k"),
        (32_768, "33k"),
        (128_000, "128k"),
        (999_499, "999k"),
        (999_500, "1.0M"),
        (1_000_000, "1.0M"),
    ],
)
def test_a_short_count_has_five_characters_at_most(number: int, shown: str) -> None:
    assert short_count_text(number) == shown
    assert len(shown) <= 5


@pytest.mark.parametrize(("number", "text"), [(0, "0 tokens"), (1, "1 token"), (2048, "2,048 tokens")])
def test_token_counts_have_thousands_separators_and_a_plural(number: int, text: str) -> None:
    assert tokens_text(number) == text
    assert text.startswith(f"{count_text(number)} ")


@pytest.mark.parametrize(("speed", "text"), [(2, "2.0 tok/s"), (61.44, "61.4 tok/s"), (312.4, "312 tok/s")])
def test_a_speed_has_a_decimal_below_100(speed: float, text: str) -> None:
    assert speed_text(speed) == text


def test_only_the_module_units_formats_sizes_and_time_spans() -> None:
    root = Path(__file__).parent.parent
    formatted = re.compile(r"\.\df\} ?(s|ms|kB|MB|GB|TB|KiB|MiB|GiB)\b")
    sources = [
        path for folder in ("macllm", "tui") for path in (root / folder).rglob("*.py") if path.name != "units.py"
    ]
    found = [
        f"{path.relative_to(root)}: {m[0]}" for path in sources for m in formatted.finditer(path.read_text("utf-8"))
    ]
    # The time to the first token is printed in milliseconds.
    assert found == ["macllm/cli/bench.py: .3f} s"]

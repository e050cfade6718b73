"""Groups of settings: a subject, ranges of numbers, and checks of values against each other."""

from __future__ import annotations

from typing import ClassVar

SMALLEST = 1e-30  # well above the smallest positive number of float32
BELOW_ONE = 1.0 - 2.0**-24  # the largest number below 1 in float32
MOST = 2.0**31

Range = tuple[str, float, float]


class SettingGroup:
    """Settings of one subject, a mixin of configs.

    `SUBJECT` is their title in help and recipes; `RANGES` are the smallest and the largest values of numbers.
    """

    SUBJECT: ClassVar[str] = ""
    RANGES: ClassVar[tuple[Range, ...]] = ()

    def _check_effects(self) -> None:
        """Refuse values that would change nothing, or contradict each other."""

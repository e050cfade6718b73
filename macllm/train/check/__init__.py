"""Checks of rows before a run: all that would stop it, and all that it would learn wrongly.

The rows are read, rendered and cut as in training. Imports no mlx.
"""

from __future__ import annotations

from .checking import check, checking
from .lengths import Lengths
from .report import DataReport, Finding, SplitReport
from .shown import Shown, ShownPiece

__all__ = ["DataReport", "Finding", "Lengths", "Shown", "ShownPiece", "SplitReport", "check", "checking"]

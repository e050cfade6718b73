"""Checks of rows before a run: everything that would stop it, and everything that it would learn wrongly.

The rows are read, rendered and cut as in training. Imports no mlx.
"""

from __future__ import annotations

from .checking import check, checking
from .lengths import Lengths
from .report import Finding, Report, SplitReport
from .shown import Piece, Shown

__all__ = ["Finding", "Lengths", "Piece", "Report", "Shown", "SplitReport", "check", "checking"]

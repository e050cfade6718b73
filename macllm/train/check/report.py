"""Result of a check: frozen values that print and serialize."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from macllm.train.events import Counts

from .lengths import Lengths
from .shown import Shown

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One kind of fault, in `count` rows; `places` are the first of them.

    An error stops a training run, a warning does not, a note is a fact to know.
    """

    level: Level
    code: str
    text: str
    count: int = 1
    places: tuple[str, ...] = ()
    remedy: str = ""


@dataclass(frozen=True)
class SplitReport:
    """Statistics of one file: its rows as a run counts them, and lengths before anything is cut."""

    role: Literal["train", "valid", "test"]
    name: str
    path: str
    rows: int
    counts: Counts
    lengths: Lengths
    supervised_lengths: Lengths
    unreadable_rows: int = 0
    duplicate_rows: int = 0
    similar_rows: int = 0  # equal to an earlier row but for white space and case


@dataclass(frozen=True)
class TokenUse:
    """Occurrences of a special token in the training rows, and those that are supervised."""

    id: int
    seen: int
    supervised: int
    ends: bool


@dataclass(frozen=True)
class DataReport:
    """Statistics of each file, findings in the order of their weight, and some rows with their masks."""

    splits: tuple[SplitReport, ...]
    findings: tuple[Finding, ...]
    max_seq_length: int
    vocabulary: int
    supervised_vocabulary: int  # different tokens that are supervised in the training rows
    special_tokens: Mapping[str, TokenUse] = field(default_factory=dict[str, TokenUse])
    shown: tuple[Shown, ...] = ()

    @property
    def errors(self) -> int:
        """Number of findings that stop a run."""
        return sum(finding.level == "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """All values as JSON values."""
        return {"errors": self.errors, **asdict(self)}

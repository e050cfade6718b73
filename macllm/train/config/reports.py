"""Settings of reports and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from macllm.errors import UsageError
from macllm.generation.sampling.ranges import shown

from .setting_group import MOST, SettingGroup

TRACKERS = ("wandb", "tensorboard")
"""Names of the trackers that a run can report to."""


@dataclass(frozen=True, kw_only=True)
class ReportSettings(SettingGroup):
    """Settings of reports and evaluation."""

    SUBJECT = "Reports and evaluation"
    RANGES = (
        ("steps_per_report", 1, MOST),
        ("steps_per_eval", 0, MOST),
        ("val_batches", -1, MOST),
    )

    steps_per_report: Annotated[int, "steps between two reports of loss and speed"] = 10
    report_to: Annotated[tuple[str, ...], "send reports to wandb, tensorboard or both; empty or none: to nobody"] = ()
    steps_per_eval: Annotated[int, "steps between two evaluations; 0: only before the first and after the last"] = 200
    val_batches: Annotated[int, "number of micro-batches per evaluation; -1: all"] = -1

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers that get reports."""
        return () if self.report_to == ("none",) else tuple(dict.fromkeys(self.report_to))

    def _check_effects(self) -> None:
        super()._check_effects()
        for name in self.trackers:
            if name not in TRACKERS:
                cause = "it stands alone" if name == "none" else None
                remedy = f"some of {', '.join(TRACKERS)}, or none"
                raise UsageError(f"report_to cannot be {shown(name)}", cause=cause, remedy=remedy)

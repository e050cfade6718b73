"""Names of the trackers that a run can report to."""

from __future__ import annotations

TRACKERS = ("wandb", "tensorboard")

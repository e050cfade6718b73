"""Settings of snapshots, and of what becomes of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .setting_group import MOST, SettingGroup
from .values import refuse_set

Select = Literal["best", "last"]


@dataclass(frozen=True, kw_only=True)
class SnapshotSettings(SettingGroup):
    """Settings of snapshots, of going back to them, and of the weights that a run ends with."""

    SUBJECT = "Snapshots and the run"
    RANGES = (
        *((name, 0, MOST) for name in ("save_every", "spike_threshold", "rollbacks")),
        *((name, 1, MOST) for name in ("keep", "spike_patience")),
    )

    save_every: Annotated[int, "steps between two snapshots; 0: only at the end"] = 100
    keep: Annotated[int, "number of newest snapshots to keep, in addition to the best"] = 2
    select: Annotated[Select, "weights to export: best on validation data (last without any), or last"] = "best"
    resume: Annotated[bool, "resume the run in the folder, with its own settings"] = False
    spike_threshold: Annotated[
        float, "a loss or gradient norm this many deviations above the median is a spike; 0: none is"
    ] = 0.0
    spike_patience: Annotated[int, "spikes in a row before going back to the last good snapshot"] = 3
    rollbacks: Annotated[
        int, "times to go back and skip steps, after spikes or a gradient that is not finite; then an error"
    ] = 3
    pause_on_battery: Annotated[bool, "save and wait while the machine runs on its battery"] = False

    def _check_effects(self) -> None:
        super()._check_effects()
        refuse_set(self, () if self.spike_threshold else ("spike_patience",), "spike_threshold is 0")
        cause = "save_every is 0: no snapshot is kept to go back to"
        refuse_set(self, () if self.save_every else ("spike_threshold",), cause)

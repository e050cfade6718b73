"""Settings of reward models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .setting_group import SettingGroup


@dataclass(frozen=True, kw_only=True)
class RewardSettings(SettingGroup):
    """Settings of reward models."""

    SUBJECT = "Reward models"
    RANGES = (("centering", 0.0, 1e3),)

    centering: Annotated[
        float, "reward: weight of the squared sum of the rewards of a pair, which keeps them near 0; 0: none"
    ] = 0.0

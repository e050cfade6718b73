"""Settings of losses on the routers of mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .setting_group import SettingGroup


@dataclass(frozen=True, kw_only=True)
class ExpertSettings(SettingGroup):
    """Settings of losses on the routers of mixtures of experts."""

    SUBJECT = "Experts"
    RANGES = (
        ("router_aux_loss_coef", -1.0, 1e3),
        ("router_z_loss_coef", 0.0, 1e3),
    )

    router_aux_loss_coef: Annotated[
        float, "weight of the experts' balance loss; 0: of config.json, with output_router_logits; -1: none"
    ] = 0.0
    router_z_loss_coef: Annotated[float, "weight of the routers' z-loss, which keeps their logits small"] = 0.0

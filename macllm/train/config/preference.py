"""Settings of objectives that learn from preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """Settings of objectives that learn from preferences."""

    beta: Annotated[float, "orpo: weight of the odds ratio; simpo: scale of the rewards; 0: orpo 0.1, simpo 2"] = 0.0
    gamma: Annotated[float, "simpo: the margin between the rewards of both answers"] = 1.0


RANGES = [("beta", 0.0, 1e3), ("gamma", 0.0, 1e3)]

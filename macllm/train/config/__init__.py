"""Settings of a training run: frozen, checked, read from TOML, keywords or `key=value` strings.

Every field has its documentation in its annotation, which the command line prints. This package imports no mlx.
"""

from __future__ import annotations

from .adapter import Method
from .context import RopeScaling
from .data import LongRows
from .distillation import Divergence, OtherTokens
from .finetune import FinetuneConfig
from .objective import FinetuneObjective, PretrainObjective
from .optimizer import OptimizerName, Schedule
from .preference import PreferenceLoss, Reference
from .pretrain import PretrainConfig
from .snapshots import Select
from .training import SETTINGS_NAME, TrainConfig

__all__ = [
    "SETTINGS_NAME",
    "Divergence",
    "FinetuneConfig",
    "FinetuneObjective",
    "LongRows",
    "Method",
    "OptimizerName",
    "OtherTokens",
    "PreferenceLoss",
    "PretrainConfig",
    "PretrainObjective",
    "Reference",
    "RopeScaling",
    "Schedule",
    "Select",
    "TrainConfig",
]

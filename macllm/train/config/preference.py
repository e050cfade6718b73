"""Settings of objectives that learn from preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from macllm.errors import UsageError

from .setting_group import SettingGroup
from .values import refuse_set

PreferenceLoss = Literal[
    "sigmoid", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down", "discopop",
    "sigmoid_norm",
]  # fmt: skip
Reference = Literal["auto", "stored", "live"]

_SMOOTHED: tuple[PreferenceLoss, ...] = ("sigmoid", "robust", "exo_pair")  # losses that read label_smoothing


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings(SettingGroup):
    """Settings of objectives that learn from preferences."""

    SUBJECT = "Preferences"
    RANGES = (
        ("beta", 0.0, 1e3),
        ("gamma", 0.0, 1e3),
        ("label_smoothing", 0.0, 0.49),
        ("desirable_weight", 0.0, 1e3),
        ("undesirable_weight", 0.0, 1e3),
    )

    beta: Annotated[float, "scale of log-ratios, odds (orpo), rewards (simpo); 0: 0.1, sigmoid_norm 5, simpo 2"] = 0.0
    gamma: Annotated[float, "simpo: the margin between the rewards of both answers"] = 1.0
    preference_loss: Annotated[PreferenceLoss, "dpo: loss of a pair; sigmoid_norm is per token"] = "sigmoid"
    label_smoothing: Annotated[
        float, "dpo: share of swapped pairs (of tokens: label_smoothing_factor); 0: none, robust 0.1, exo_pair 1e-3"
    ] = 0.0
    desirable_weight: Annotated[float, "kto: weight of good answers"] = 1.0
    undesirable_weight: Annotated[float, "kto: weight of bad answers"] = 1.0
    reference: Annotated[
        Reference, "dpo, kto: first model's log-probabilities, computed once or live; auto: the faster"
    ] = "auto"


def check(config: PreferenceSettings, is_full: bool) -> None:
    """Raise UsageError for settings that have no effect, or cannot be with full fine-tuning."""
    if config.preference_loss not in _SMOOTHED:
        refuse_set(config, ("label_smoothing",), f"preference_loss is {config.preference_loss}")
    if config.reference == "live" and is_full:
        cause = "full fine-tuning keeps no copy of the weights that it began with"
        raise UsageError("reference cannot be live", cause=cause, remedy="--reference stored, or --lora")
